"""How long a weight sync takes, where its seconds go, and how far that is from a plain copy of the same bytes.

    python benchmarks/weight_sync.py --pairs 7
    python benchmarks/weight_sync.py --smoke

One trainer rank and one generator, as PPO starts them; syncs and plain copies take turns. The plain copy goes the same
way without any of the machinery: over shared memory one process writes the bytes and another reads them; on GPUs one
buffer is copied to another. Writes benchmarks/results/weight_sync.json, .md and .png.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.made_models import TEMPLATE, make_policy  # noqa: E402
from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402
from rlhf_ray.config.run import RunConfig  # noqa: E402

NAME = "weight_sync"
BACKENDS = ("shared_memory", "nccl", "ipc")
PROBE = list(range(5, 53))
WARM_UP = 2  # syncs and copies that are not counted
PARTS = ("begin", "offer", "transmit", "receive", "finish", "probe")  # of a sync


@dataclass(frozen=True)
class Sync:
    """One sync and the plain copy beside it, seconds."""

    sync_s: float
    copy_s: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """One size over one back end."""

    shape: str
    backend: str
    dtype: str
    num_bytes: int
    pairs: tuple[Sync, ...]

    @property
    def ratios(self) -> list[float]:
        return sorted(pair.sync_s / pair.copy_s for pair in self.pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / NAME, help="where the made models go")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of trainer and engine")
    parser.add_argument("--bucket-mb", type=int, help="default: as weight_sync.bucket_mb")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    parser.add_argument("--smoke", action="store_true", help="the smallest model, two pairs; recorded beside the runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.shapes, arguments.pairs = arguments.shapes[:1], 2
    cases = []
    for backend in arguments.backends:
        if reason := missing(backend):
            print(f"{backend}: left out, {reason}", flush=True)
            continue
        cases += [asyncio.run(measured(shape, backend, arguments)) for shape in arguments.shapes]
    record = record_of(NAME, command_line(arguments), arguments.note, cases=[asdict(case) for case in cases])
    page = table(record, cases)
    plot(cases, write_record(record, page, arguments.runs if arguments.smoke else RESULTS))
    print(page)
    return 0


def missing(backend: str) -> str:
    """Why a back end cannot be measured here; empty where it can."""
    import torch

    gpus = torch.cuda.device_count()
    if backend == "shared_memory":
        return "it is for machines without a GPU" if gpus else ""
    wanted = 2 if backend == "nccl" else 1
    return "" if gpus >= wanted else f"it needs {wanted} GPUs and there are {gpus}"


def command_line(arguments: argparse.Namespace) -> str:
    """The command that makes the record again."""
    words = ["--pairs", str(arguments.pairs), "--shapes", *arguments.shapes]
    words += [] if tuple(arguments.backends) == BACKENDS else ["--backends", *arguments.backends]
    words += [] if arguments.dtype == "float32" else ["--dtype", arguments.dtype]
    words += [] if arguments.bucket_mb is None else ["--bucket-mb", str(arguments.bucket_mb)]
    return shlex.join(["python", f"benchmarks/{NAME}.py", *words, *(["--smoke"] if arguments.smoke else [])])


# ---------------------------------------------------------------------------------------------------------------- syncs
async def measured(shape: str, backend: str, arguments: argparse.Namespace) -> Case:
    """Syncs and plain copies of one size in turns, the one that comes first changing from pair to pair."""
    from actors.cluster import cluster
    from actors.fleet import Fleet
    from launch.command import be_quiet
    from rlhf_ray.config.ppo import PpoConfig
    from rlhf_ray.stages.ppo import PpoSpec

    be_quiet()
    policy = str(make_policy(shape, arguments.runs / "models" / shape))
    device = "cpu" if backend == "shared_memory" else "cuda"
    with tempfile.TemporaryDirectory(prefix="sync-") as directory:
        config = settings(backend, arguments, Path(directory))
        with cluster(config.cluster, wanted_cpus=2):
            async with Fleet(config, device).scope() as scope:
                ppo = PpoConfig(advantages="rloo", responses_per_prompt=4)  # no critic: it is not sent
                spec = PpoSpec(policy, "", config.model, config.model, config.training, ppo)
                trainer, generators = await asyncio.gather(
                    scope.ppo_trainer(spec, demonstrations=lambda step: ()), scope.generators(policy)
                )
                weights = await scope.weight_sync(trainer, generators, PROBE)
                reports = [await weights.sync(version) for version in range(1, WARM_UP + 1)]
                num_bytes, pairs = reports[-1].num_bytes, []
                with plain_copy(backend, num_bytes) as copy:
                    for _ in range(WARM_UP):
                        copy()
                    for number in range(arguments.pairs):
                        before = copy() if number % 2 else 0.0
                        report = await weights.sync(WARM_UP + 1 + number)
                        pairs.append(Sync(report.seconds, before or copy(), report.parts))
    return Case(shape, backend, arguments.dtype, num_bytes, tuple(pairs))


def settings(backend: str, arguments: argparse.Namespace, directory: Path) -> RunConfig:
    base = RunConfig()
    shared = {"gpus_per_rank": 0.5} if backend == "ipc" else {}
    engine = {"gpus_per_engine": 0.5, "gpu_memory_utilization": 0.4} if backend == "ipc" else {}
    bucket = {} if arguments.bucket_mb is None else {"bucket_mb": arguments.bucket_mb}
    return replace(
        base,
        output_dir=str(directory),
        model=replace(base.model, chat_template=TEMPLATE),
        training=replace(base.training, dtype=arguments.dtype, **shared),
        generation=replace(base.generation, max_model_len=128, **engine),
        weight_sync=replace(base.weight_sync, transport=backend, **bucket),
    )


# ---------------------------------------------------------------------------------------------------------- plain copy
@contextmanager
def plain_copy(backend: str, num_bytes: int) -> Iterator[Callable[[], float]]:
    """What copies so many bytes once and returns the seconds."""
    if backend == "shared_memory":
        with copy_through_memory(num_bytes) as copy:
            yield copy
        return
    yield copy_between_gpus(num_bytes, target="cuda:1" if backend == "nccl" else "cuda:0")


@contextmanager
def copy_through_memory(num_bytes: int) -> Iterator[Callable[[], float]]:
    """This process writes a new file in memory; another reads it into memory of its own."""
    import torch

    from rlhf_ray.weight_sync.shared_memory import bucket_directory

    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8).numpy().data
    here, there = multiprocessing.get_context("spawn").Pipe()
    reader = multiprocessing.get_context("spawn").Process(target=read_when_told, args=(there, num_bytes), daemon=True)
    reader.start()
    with bucket_directory() as directory:

        def copy() -> float:
            path = directory / "plain"
            begun = time.perf_counter()
            with path.open("wb") as file:
                file.write(source)
            here.send(str(path))
            here.recv()
            seconds = time.perf_counter() - begun
            path.unlink()
            return seconds

        try:
            yield copy
        finally:
            here.send("")
            reader.join()


def read_when_told(connection: Connection, num_bytes: int) -> None:
    """The other process: copy each file that is named, until the name is empty."""
    target = memoryview(bytearray(num_bytes))
    while name := connection.recv():
        with Path(name).open("rb") as file:
            file.readinto(target)
        connection.send("")


def copy_between_gpus(num_bytes: int, *, target: str) -> Callable[[], float]:
    import torch

    source = torch.ones(num_bytes, dtype=torch.uint8, device="cuda:0")
    room = torch.empty_like(source, device=target)

    def copy() -> float:
        begun = time.perf_counter()
        room.copy_(source)
        torch.cuda.synchronize(source.device)
        torch.cuda.synchronize(room.device)
        return time.perf_counter() - begun

    return copy


# -------------------------------------------------------------------------------------------------------------- record
SUMMARY = (
    "Medians over pairs; the ratio is taken pair by pair, with its least and greatest value. Parts are as the driver "
    "sees them, messages included: begin pauses the engine, offer gathers, writes and hashes the buckets, transmit "
    "sends them (over shared memory there is nothing to send), receive maps, hashes and loads them into the engine, "
    "finish compares digests and resumes, probe compares what trainer and engine answer. Parts of different buckets "
    "run at the same time: they may sum to more than the sync."
)


def table(record: Mapping[str, Any], cases: Sequence[Case]) -> str:
    lines = opening(record, "Weight sync against a plain copy", SUMMARY)
    head = ("model", "back end", "MB", "sync, s", "plain copy, s", "ratio", "MB/s", *(f"{part}, s" for part in PARTS))
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for case in cases:
        seconds = statistics.median(pair.sync_s for pair in case.pairs)
        ratios = case.ratios
        cells = [
            f"{case.shape}, {case.dtype}",
            case.backend,
            f"{case.num_bytes / 1e6:.0f}",
            f"{seconds:.3f}",
            f"{statistics.median(pair.copy_s for pair in case.pairs):.3f}",
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            f"{case.num_bytes / 1e6 / seconds:.0f}",
            *(f"{part_seconds(case, part):.3f}" for part in PARTS),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *closing(record)])


def part_seconds(case: Case, part: str) -> float:
    return statistics.median(pair.parts.get(part, 0.0) for pair in case.pairs)


def plot(cases: Sequence[Case], path: Path) -> None:
    """Seconds by bytes: sync, plain copy, and the parts of a sync."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for backend in dict.fromkeys(case.backend for case in cases):
        own = sorted((case for case in cases if case.backend == backend), key=lambda case: case.num_bytes)
        sizes = [case.num_bytes / 1e6 for case in own]
        for label, style, read in (
            ("sync", "o-", lambda pair: pair.sync_s),
            ("plain copy", "s--", lambda pair: pair.copy_s),
        ):
            values = [statistics.median(map(read, case.pairs)) for case in own]
            axes.plot(sizes, values, style, label=f"{backend}: {label}")
        for part in PARTS:
            if any(values := [part_seconds(case, part) for case in own]):
                axes.plot(sizes, values, ".:", linewidth=0.8, label=f"{backend}: {part}")
    axes.set(xscale="log", yscale="log", xlabel="weights, MB", ylabel="seconds")
    axes.legend(fontsize=7, ncols=2, frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
