"""What the doctor looks at, as plain records: gathered elsewhere, made up in tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf_ray.config.run import RunConfig
from rlhf_ray.doctor.findings import Finding
from rlhf_ray.planning.shapes import ModelShape


@dataclass(frozen=True)
class Stack:
    """Installed versions by package, and requirements of them on each other that do not hold, in pip's words."""

    versions: Mapping[str, str]
    conflicts: tuple[str, ...] = ()
    torch_cuda: str = ""  # the CUDA that torch was built for; empty for a build without
    driver: str = ""  # of NVIDIA; empty where there is none
    compiler: str = ""  # a C++ compiler's path
    ninja: str = ""


@dataclass(frozen=True)
class NodeFacts:
    """One node of the cluster. ``memory``: bytes of RAM, 0 where not known. ``gpu_memory``: of one GPU."""

    name: str
    cpus: float
    gpus: float
    memory: float = 0.0
    gpu_memory: float = 0.0


@dataclass(frozen=True)
class Machine:
    """This machine and the cluster. ``placement``: by stage, why its bundles can never be placed."""

    cpus: int
    memory: float
    memory_free: float
    shm_size: float
    shm_free: float
    disk_free: float
    writable: bool
    loopback: bool = True  # whether a port of this machine can be listened on
    nodes: tuple[NodeFacts, ...] = ()
    local: bool = True  # whether the cluster would be started here
    device: str = "cpu"
    wanted: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # by stage: (CPUs, GPUs)
    placement: Mapping[str, str] = field(default_factory=dict)
    cluster_problem: str = ""


@dataclass(frozen=True)
class Text:
    """The tokenizer beside the model. ``embeddings``: rows of the model's embedding."""

    tokenizer_size: int = 0
    embeddings: int = 0
    eos_token: str | None = None
    pad_token: str | None = None
    not_fetched: bool = False  # a model of the hub that is not on this machine yet


@dataclass(frozen=True)
class Prompts:
    """What was counted of one split's prompts, the first of them (``read``)."""

    split: str
    read: int
    empty: int = 0
    repeated: int = 0
    too_long: int = 0


@dataclass(frozen=True)
class Data:
    """Counts of what was read. ``leaked``: held-out prompts that stand among the training prompts."""

    prompts: tuple[Prompts, ...] = ()
    leaked: int = 0
    not_read: tuple[str, ...] = ()  # sources of the hub


@dataclass(frozen=True)
class Facts:
    """Everything. ``raised``: findings of the checks at the door, which a run makes too."""

    config: RunConfig
    stack: Stack
    machine: Machine
    text: Text
    data: Data
    shape: ModelShape | None = None
    raised: tuple[Finding, ...] = ()
