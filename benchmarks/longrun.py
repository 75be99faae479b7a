"""Does anything grow in a long run? Memory, file handles, Ray's objects and step time over 500 steps of a tiny one.

    python benchmarks/longrun.py --steps 500

The real stack with the smallest model and batch that it takes, saving its state now and then, looked at from outside
by the means of ``soak.py``. For each number: a line by least squares with its 95% interval, and whether that is flat;
status 1 where it is not. Writes benchmarks/results/longrun.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402
from benchmarks.soak import actors, cluster, started, stored_bytes, wait_for_first_step  # noqa: E402
from tests.small import SMALL  # noqa: E402

NAME = "longrun"
POLL_S = 0.5
SAMPLES = 200  # about so many times the run is looked at
WARM_UP = 0.2  # of the steps: what grows while caches fill is no leak (the KV cache is touched bit by bit)
BLOCKS = 10  # the line goes through their means, which depend on each other less than samples do
T95 = 2.306  # Student's t, two-sided, for BLOCKS - 2 degrees of freedom
TOLERANCE = 0.02  # of the level, over the whole run: less is no growth
SETTINGS = (
    *SMALL,
    "model.scratch.vocab_size=512",
    "model.scratch.hidden_size=64",
    "model.scratch.intermediate_size=128",
    "model.scratch.num_heads=2",
    "model.scratch.num_key_value_heads=2",
    "generation.num_engines=1",
    "generation.shard_size=4",
    "ppo.rollouts_per_step=8",
    "ppo.max_response_tokens=8",
    "ppo.num_epochs=1",
    "ppo.num_minibatches=1",
    "ppo.eval_every=0",
    "ppo.checkpoint_every=50",
)


@dataclass(frozen=True)
class Sample:
    """What may not grow, after a step."""

    step: int
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Trend:
    """A line through a number over the steps; ``half`` is half of its slope's 95% interval."""

    name: str
    first_third: float  # medians
    last_third: float
    slope: float  # a step
    half: float
    num_steps: int

    @property
    def growth(self) -> float:
        """Over all steps, by the line."""
        return self.slope * self.num_steps

    @property
    def is_flat(self) -> bool:
        """Growth that chance does not explain and that is not small beside the level is growth."""
        return self.slope - self.half <= 0 or self.growth <= TOLERANCE * abs(self.first_third)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--smoke", action="store_true", help="30 steps, recorded beside the runs")
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / NAME, help="where --smoke writes")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    steps, folder = (30, arguments.runs) if arguments.smoke else (arguments.steps, RESULTS)
    with tempfile.TemporaryDirectory(prefix="longrun", dir="/tmp") as directory, cluster(Path(directory)):
        run = Path(directory) / "run"
        settings = (*SETTINGS, f"ppo.num_steps={steps}")
        with started(run, settings) as process:
            wait_for_first_step(run, process, steps_done)
            samples = watched(process, run, steps)
        seconds = step_seconds(run)
    trends = trends_of(samples, seconds)
    record = record_of(
        NAME,
        shlex.join(["python", f"benchmarks/{NAME}.py", "--steps", str(steps)]),
        arguments.note,
        settings=settings,
        samples=[asdict(sample) for sample in samples],
        step_seconds=seconds,
        trends=[{**asdict(trend), "flat": trend.is_flat} for trend in trends],
    )
    page = table(record, trends)
    plot(samples, seconds, write_record(record, page, folder))
    print(page)
    return 0 if all(trend.is_flat for trend in trends) else 1


# ------------------------------------------------------------------------------------------------------------- looking
def watched(process: subprocess.Popen[bytes], run: Path, steps: int) -> list[Sample]:
    """Look at the run every few steps until it has done them all. Raises SystemExit where it ends before."""
    samples: list[Sample] = []
    while (done := steps_done(run)) < steps:
        if process.poll() is not None:
            raise SystemExit(f"the run has ended after {done} steps: {run.with_suffix('.log').read_text()[-4000:]}")
        if not samples or done - samples[-1].step >= steps / SAMPLES:
            samples.append(Sample(done, looked_at(process.pid)))
        time.sleep(POLL_S)
    return samples


def steps_done(run: Path) -> int:
    return len(step_seconds(run))


def step_seconds(run: Path) -> list[float]:
    """Of every step that the log has whole."""
    log = run / "ppo" / "metrics.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [row["time/step"] for row in map(json.loads, lines) if "time/step" in row]


def looked_at(driver: int) -> dict[str, float]:
    """Memory in MiB and open files, by role with the processes below each actor, and Ray's objects."""
    owned, stored = num_objects()
    numbers = {"owned: objects": owned, "in the store: objects": stored, "store, MiB": stored_bytes() / 2**20}
    for name, process in [("driver", psutil.Process(driver)), *actors()]:
        role = name.removesuffix("Actor").lower()
        family = [process, *(process.children(recursive=True) if role != "driver" else [])]
        for kind, value in (
            ("memory, MiB", sum(each.memory_info().rss for each in family) / 2**20),
            ("open files", float(sum(each.num_fds() for each in family))),
        ):
            numbers[f"{role}: {kind}"] = numbers.get(f"{role}: {kind}", 0.0) + value
    return numbers


def num_objects() -> tuple[float, float]:
    """Those that processes of this process's cluster own, small ones included, and those in its store; of one node."""
    import ray
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return float(sum(w.num_owned_objects for w in stats.core_workers_stats)), float(stats.store_stats.num_local_objects)


# -------------------------------------------------------------------------------------------------------------- trends
def trends_of(samples: Sequence[Sample], seconds: Sequence[float]) -> list[Trend]:
    """One for each number that every sample has, and one for the steps' time."""
    names = [name for name in samples[0].numbers if all(name in sample.numbers for sample in samples)]
    steps = [sample.step for sample in samples]
    found = [trend(name, steps, [sample.numbers[name] for sample in samples]) for name in names]
    return [*found, trend("step, s", list(range(1, len(seconds) + 1)), seconds)]


def trend(name: str, steps: Sequence[int], values: Sequence[float]) -> Trend:
    """Least squares through the means of equal blocks, the warm-up left out. Raises ValueError for too few values."""
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if step > WARM_UP * steps[-1]]
    if len(kept) < BLOCKS:
        raise ValueError(f"{name}: {len(kept)} values after the warm-up are fewer than {BLOCKS}; run more steps")
    blocks = [block.mean(axis=0) for block in np.array_split(np.array(kept, dtype=np.float64), BLOCKS)]
    x, y = np.array(blocks).T
    slope, level = np.polyfit(x, y, 1)
    residuals = y - (slope * x + level)
    error = np.sqrt((residuals**2).sum() / (BLOCKS - 2) / ((x - x.mean()) ** 2).sum())
    third = len(kept) // 3
    medians = [statistics.median(value for _, value in part) for part in (kept[:third], kept[-third:])]
    return Trend(name, medians[0], medians[1], float(slope), float(T95 * error), steps[-1])


# -------------------------------------------------------------------------------------------------------------- record
def table(record: Mapping[str, Any], trends: Sequence[Trend]) -> str:
    lines = opening(record, f"{len(record['step_seconds'])} steps of a tiny run", SUMMARY)
    head = ("number", "first third", "last third", "slope for 100 steps, 95% interval", "over the run", "flat")
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for each in trends:
        slope = f"{100 * each.slope:+.3g} ± {100 * each.half:.2g}"
        cells = [each.name, f"{each.first_third:.4g}", f"{each.last_third:.4g}", slope, f"{each.growth:+.3g}"]
        lines.append("| " + " | ".join([*cells, "yes" if each.is_flat else "NO"]) + " |")
    return "\n".join([*lines, *closing(record)])


SUMMARY = (
    f"Medians of the first and the last third of the run after its first {WARM_UP:.0%}; a line by least squares "
    f"through the means of {BLOCKS} equal blocks. Flat: the slope's interval reaches down to 0, or the line grows by "
    f"no more than {TOLERANCE:.0%} of the level over the whole run. Memory is resident memory; a role's numbers are "
    "those of all its actors and of the processes below them. Objects are those that Ray's processes own, small ones "
    "that never reach the store included. The state is saved every 50 steps."
)


def plot(samples: Sequence[Sample], seconds: Sequence[float], path: Path) -> None:
    """Memory, files and objects relative to the first sample; the steps' time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2).flat
    steps = [sample.step for sample in samples]
    for panel, kind in zip(panels, ("memory, MiB", "open files", "objects"), strict=False):
        for name in (name for name in samples[0].numbers if kind in name):
            panel.plot(steps, [sample.numbers.get(name, np.nan) for sample in samples], label=name.split(":")[0])
        panel.set(xlabel="step", title=kind)
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=8)
    last = figure.axes[-1]
    last.plot(range(1, len(seconds) + 1), seconds, ".", markersize=3)
    last.set(xlabel="step", title="seconds a step")
    last.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
