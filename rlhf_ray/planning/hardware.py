"""Rates of accelerators as their makers state them. docs/planning.md names the source of each number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rlhf_ray.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """One device. ``flops``: dense bfloat16 a second; ``bandwidth``: of its memory; links: one way, bytes a second."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float  # to its neighbours in the node
    network: float = 50e9  # to other nodes: a 400 Gbit/s adapter for each device
    host_link: float = 25e9  # to the host's memory
    per_node: int = 8


ACCELERATORS: dict[str, Accelerator] = {
    "a100-80": Accelerator("a100-80", 312e12, 80e9, 2.039e12, 300e9, network=25e9),
    "h100": Accelerator("h100", 989.4e12, 80e9, 3.35e12, 450e9, host_link=50e9),
    "h200": Accelerator("h200", 989.4e12, 141e9, 4.8e12, 450e9, host_link=50e9),
    "b200": Accelerator("b200", 2250e12, 180e9, 7.7e12, 900e9, host_link=50e9),
    "l40s": Accelerator("l40s", 362e12, 48e9, 0.864e12, 32e9, network=12.5e9),
}

RAY_NAMES = {"A100-80G": "a100-80"}  # where they are not the names above; its "A100" has 40 GB and other rates


@dataclass(frozen=True)
class Efficiency:
    """The share of a stated rate that well-tuned software reaches. Assumptions, not measurements."""

    training: float = 0.40  # model FLOPs utilisation of PaLM's size of run (Chowdhery et al. 2022: 0.46)
    forward: float = 0.50
    decode_bandwidth: float = 0.60
    wire: float = 0.70
    decode_step_s: float = 0.002  # host work of one engine step, whatever its batch


def accelerator(name: str) -> Accelerator:
    """The device of that name. Raises ConfigError for one whose rates are not in the table."""
    if name not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise ConfigError("--gpu", name, "is not in the table of rates", f"choose {known}, or --probe")
    return ACCELERATORS[name]


def accelerator_of_ray(kinds: Iterable[str]) -> Accelerator | None:
    """The one kind of device that a cluster has, by Ray's names; None where it has several, or one without rates."""
    found = {RAY_NAMES.get(kind, kind).lower() for kind in kinds}
    return ACCELERATORS.get(found.pop()) if len(found) == 1 else None
