"""What the driver costs by rollouts, tokens a rollout and workers: its CPU seconds and memory for each step.

    python benchmarks/driver_scale.py

The real driver with the real groups of generators and trainer ranks, over the engines of ``simulator.py`` that compute
nothing. One size changes at a time. The driver holds references and summaries, never tokens: its memory must not grow
with their number; status 1 where it does. Writes benchmarks/results/driver_scale.json, .md and .png.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402
from benchmarks.simulated_fleet import Measured, Scale  # noqa: E402
from benchmarks.simulator import INPUTS, Setup, simulate  # noqa: E402

NAME = "driver_scale"
TOKENS = 512
TOKEN_BYTES = 16  # token, two log-probabilities, version: what a rollout's token takes in the object store
GROWTH_LIMIT = 0.01  # of the bytes of additional tokens


@dataclass(frozen=True)
class Sizes:
    """Of a step and of the fleet."""

    rollouts: int = 2048
    tokens: int = TOKENS  # of a response, on average
    generators: int = 16
    ranks: int = 8


AXES: Mapping[str, Sequence[int]] = {
    "rollouts": (256, 1024, 4096, 16384),
    "tokens": (64, 512, 4096, 32768),
    "generators": (1, 8, 64, 512),
    "ranks": (1, 8, 64),
}
SMOKE = Sizes(rollouts=128, generators=4, ranks=2)
SMOKE_AXES: Mapping[str, Sequence[int]] = {
    "rollouts": (64, 256),
    "tokens": (64, 4096),
    "generators": (1, 8),
    "ranks": (1, 4),
}


@dataclass(frozen=True)
class Point:
    """One size: the driver's CPU seconds for each step, one number a repetition, and the peak of traced memory."""

    axis: str
    sizes: Sizes
    cpu_s: tuple[float, ...]
    memory_bytes: int

    @property
    def median_cpu_s(self) -> float:
        return statistics.median(self.cpu_s)

    @property
    def token_bytes(self) -> int:
        """What the step's tokens take where they lie, which is not in the driver."""
        return self.sizes.rollouts * self.sizes.tokens * TOKEN_BYTES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="of each run; the first is left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="small sizes, recorded beside the runs")
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / NAME, help="where --smoke writes")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    base, axes, folder = (SMOKE, SMOKE_AXES, arguments.runs) if arguments.smoke else (Sizes(), AXES, RESULTS)
    measured = Measured.read(INPUTS)
    simulate(setup_of(SMOKE, 2), measured)  # loads code
    points = []
    for axis, values in axes.items():
        for value in values:
            points.append(point(axis, replace(base, **{axis: value}), arguments.steps, arguments.repeats, measured))
            print(row(points[-1]), flush=True)
    command = ["python", f"benchmarks/{NAME}.py", "--steps", str(arguments.steps), "--repeats", str(arguments.repeats)]
    record = record_of(
        NAME,
        shlex.join([*command, *(["--smoke"] if arguments.smoke else [])]),
        arguments.note,
        inputs=measured.source,
        points=[asdict(each) for each in points],
        memory_per_token=growth_per_token(points),
    )
    page = table(record, points)
    plot(points, write_record(record, page, folder))
    print(page)
    return 0 if is_flat(points) else 1


def setup_of(sizes: Sizes, steps: int) -> Setup:
    """A calm fleet. Engines are as much faster as responses are longer, or they would be taken for dead."""
    scale = Scale(response_length=sizes.tokens, tokens_per_second=Scale.tokens_per_second * sizes.tokens / TOKENS)
    return Setup(sizes.generators, 0.0, steps, sizes.rollouts, scale=scale, ranks=sizes.ranks)


def point(axis: str, sizes: Sizes, steps: int, repeats: int, measured: Measured) -> Point:
    setup = setup_of(sizes, steps)
    cpu = tuple(simulate(setup, measured).driver_cpu_s / (steps - 1) for _ in range(repeats))
    tracemalloc.start()  # it slows everything down: no seconds are taken here
    try:
        simulate(replace(setup, steps=2), measured)
        return Point(axis, sizes, cpu, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def growth_per_token(points: Sequence[Point]) -> float:
    """Bytes of the driver's memory for each additional sampled token of a step, from the fewest to the most."""
    least, *_, most = sorted((p for p in points if p.axis == "tokens"), key=lambda p: p.sizes.tokens)
    additional = (most.sizes.tokens - least.sizes.tokens) * most.sizes.rollouts
    return (most.memory_bytes - least.memory_bytes) / additional


def is_flat(points: Sequence[Point]) -> bool:
    return growth_per_token(points) < GROWTH_LIMIT * TOKEN_BYTES


# -------------------------------------------------------------------------------------------------------------- record
HEAD = ("changed", "rollouts", "tokens", "generators", "ranks", "CPU s a step", "min to max", "µs a rollout")


def table(record: Mapping[str, Any], points: Sequence[Point]) -> str:
    head = (*HEAD, "peak memory, MiB", "the tokens, MiB")
    lines = opening(record, "What the driver costs", SUMMARY.format(inputs=record["inputs"]))
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *map(row, points)]
    growth = growth_per_token(points)
    verdict = "does not grow" if is_flat(points) else "GROWS"
    lines += [
        "",
        f"Memory {verdict} with tokens: {growth:+.4f} bytes for each additional token of {TOKEN_BYTES} bytes.",
    ]
    return "\n".join([*lines, *closing(record)])


def row(point: Point) -> str:
    sizes = point.sizes
    cells = [point.axis, *(f"{size:,}" for size in (sizes.rollouts, sizes.tokens, sizes.generators, sizes.ranks))]
    cells += [
        f"{point.median_cpu_s:.3f}",
        f"{min(point.cpu_s):.3f} to {max(point.cpu_s):.3f}",
        f"{1e6 * point.median_cpu_s / sizes.rollouts:.0f}",
        f"{point.memory_bytes / 2**20:.2f}",
        f"{point.token_bytes / 2**20:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


SUMMARY = (
    "CPU seconds for each step of the driver and what lives in its process (dispatch, health, planning of updates, "
    "garbage collection, the event loop), the simulated parts' own methods left out: median over repetitions. Memory: "
    "the peak of what Python has allocated in a run of two steps, the simulated parts included. In the last column "
    "what the step's tokens take where they lie, in the object store. Ray's share of a call is in neither. Spreads of "
    "lengths and times: {inputs}."
)


def plot(points: Sequence[Point], path: Path) -> None:
    """A column an axis: seconds above, memory below."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(point.axis for point in points))
    figure = Figure(figsize=(3 * len(axes), 5), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False, sharey="row")
    for column, axis in enumerate(axes):
        own = [point for point in points if point.axis == axis]
        values = [getattr(point.sizes, axis) for point in own]
        panels[0][column].plot(values, [point.median_cpu_s for point in own], "o-")
        panels[1][column].plot(values, [point.memory_bytes / 2**20 for point in own], "o-", label="driver")
        panels[1][column].plot(values, [point.token_bytes / 2**20 for point in own], "--", color="grey", label="tokens")
        for panel in (panels[0][column], panels[1][column]):
            panel.set(xscale="log", yscale="log", xlabel=axis)
            panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("CPU s a step")
    panels[1][0].set_ylabel("MiB")
    panels[1][0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
