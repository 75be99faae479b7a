"""From the configuration to Ray bundles, by arithmetic alone: who needs what, and can the cluster ever give it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.errors import PlacementError


@dataclass(frozen=True)
class Bundle:
    """What one actor needs. ``field`` names the setting that decides it."""

    role: str
    index: int
    cpus: float
    gpus: float
    field: str

    @property
    def resources(self) -> dict[str, float]:
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount > 0}

    def __str__(self) -> str:
        needs = " + ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        return f"{self.role} {self.index}: {needs or 'nothing'}"


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has in all."""

    name: str
    cpus: float
    gpus: float


def bundles(role: str, *, count: int, cpus: float, gpus: float, device: str, field: str) -> tuple[Bundle, ...]:
    """``count`` equal bundles for one role; on CPU nothing asks for a GPU."""
    return tuple(Bundle(role, i, cpus, gpus if device == "cuda" else 0.0, field) for i in range(count))


def assign(wanted: Sequence[Bundle], nodes: Sequence[Node]) -> dict[Bundle, str]:
    """Put every bundle on a node, largest first, and return the node's name for each.

    Raises PlacementError when the empty cluster could not hold them all: it says what is asked, what exists, and which
    settings to change. First-fit decreasing, so a request that fits only by a cleverer packing is refused as well.
    """
    free = [(node.name, [node.cpus, node.gpus]) for node in nodes]  # two nodes may share an address
    placed: dict[Bundle, str] = {}
    for bundle in sorted(wanted, key=lambda b: (-b.gpus, -b.cpus, b.role, b.index)):
        for name, room in free:
            if room[0] + 1e-9 >= bundle.cpus and room[1] + 1e-9 >= bundle.gpus:
                room[0] -= bundle.cpus
                room[1] -= bundle.gpus
                placed[bundle] = name
                break
        else:
            raise PlacementError(explain(bundle, wanted, nodes))
    return placed


def explain(stuck: Bundle, wanted: Sequence[Bundle], nodes: Sequence[Node]) -> str:
    """Say what is asked for, what exists and what to change."""
    cpus, gpus = total(wanted)
    short = []
    if cpus > sum(n.cpus for n in nodes):
        short.append("CPUs")
    if gpus > sum(n.gpus for n in nodes):
        short.append("GPUs")
    reason = f"not enough {' and '.join(short)}" if short else "no single node has room for it beside the others"
    asked = "; ".join(f"{role} x{count} ({each})" for role, count, each in _by_role(wanted))
    exists = "; ".join(f"{n.name}: {n.cpus:g} CPU, {n.gpus:g} GPU" for n in nodes) or "no node"
    fields = ", ".join(sorted({b.field for b in wanted}))
    return (
        f"the cluster can never hold {stuck}: {reason}. Asked for {cpus:g} CPU and {gpus:g} GPU in all: {asked}. "
        f"The cluster has {exists}. Lower one of {fields}, or add nodes."
    )


def total(wanted: Iterable[Bundle]) -> tuple[float, float]:
    """(CPUs, GPUs) of all bundles together."""
    items = list(wanted)
    return sum(b.cpus for b in items), sum(b.gpus for b in items)


def _by_role(wanted: Sequence[Bundle]) -> list[tuple[str, int, str]]:
    roles: dict[str, list[Bundle]] = {}
    for bundle in wanted:
        roles.setdefault(bundle.role, []).append(bundle)
    return [
        (role, len(group), " + ".join(f"{v:g} {k}" for k, v in group[0].resources.items()))
        for role, group in roles.items()
    ]


def nodes_from_ray(rows: Iterable[Mapping[str, Any]]) -> tuple[Node, ...]:
    """Living nodes from ``ray.nodes()``."""
    living = []
    for row in rows:
        if row["Alive"]:
            resources, name = row["Resources"], str(row["NodeManagerAddress"])
            living.append(Node(name, float(resources.get("CPU", 0)), float(resources.get("GPU", 0))))
    return tuple(living)
