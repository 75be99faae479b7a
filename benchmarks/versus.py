"""How long does a step take beside TRL? The same models, prompts, batch and updates, in turns on the same machine.

    python benchmarks/versus.py --pairs 3
    python benchmarks/versus.py --shape m30 --dtype bfloat16 --algorithms ppo grpo

TRL's PPO with critic, reference and reward model is that of 1.12.0, RLOO and GRPO are those of 1.16.0, each in an
environment of its own below the runs; ours is the whole stack: Ray actors, vLLM, DeepSpeed. A run is a process of its
own and its first steps are left out. Writes benchmarks/results/versus_SHAPE_DTYPE.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks import shapes, versus_ours  # noqa: E402
from benchmarks.learning_trl import VERSIONS, probe, settings  # noqa: E402
from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402
from benchmarks.versus_ours import MICRO_BATCH, PROMPT_TOKENS, RESPONSE_TOKENS, Case  # noqa: E402

TRL_PROBE = CHECKOUT / "benchmarks" / "versus_trl_probe.py"
TITLES = {"ppo": "PPO with critic", "rloo": "RLOO", "grpo": "GRPO"}


@dataclass(frozen=True)
class Pair:
    """Seconds of every step of two runs, the warm-up left out."""

    algorithm: str
    ours: tuple[float, ...]
    trl: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as long a step takes in TRL, by the medians."""
        return statistics.median(self.trl) / statistics.median(self.ours)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(shapes.SHAPES), default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--algorithms", nargs="+", choices=list(VERSIONS), default=list(VERSIONS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="of a run, those of the warm-up included")
    parser.add_argument("--warm-up", type=int, default=3, help="steps at the beginning of a run that are left out")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side; default: all cores")
    parser.add_argument("--smoke", action="store_true", help="one pair each, small and short, recorded beside the runs")
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / "versus")
    parser.add_argument("--environments", type=Path, default=CHECKOUT / "runs" / "environments", help="of TRL")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    given = parser.parse_args()
    if given.smoke:
        given.pairs, given.rollouts, given.steps, given.warm_up = 1, 32, 3, 1
    if not 0 <= given.warm_up < given.steps:
        parser.error(f"--warm-up ({given.warm_up}) must be less than --steps ({given.steps}), or nothing is left")
    record = versus(given)
    page = table(record)
    plot(pairs_of(record), write_record(record, page, given.runs if given.smoke else RESULTS))
    print(page)
    return 0


def versus(given: argparse.Namespace) -> dict[str, Any]:
    """All pairs, as a record."""
    store = (given.runs / f"{given.shape}_{given.dtype}").resolve()
    cases = [
        Case(name, given.shape, given.dtype, given.rollouts, given.steps, given.threads) for name in given.algorithms
    ]
    pairs = []
    for case in cases:
        versus_ours.prepare(case, store)
        for number in range(given.pairs):
            pairs.append(pair(case, store, number, given))
            print(f"{case.algorithm}: {pairs[-1].ratio:.2f}", flush=True)
    words = ["--shape", given.shape, "--dtype", given.dtype, "--pairs", str(given.pairs)]
    words += ["--algorithms", *given.algorithms, "--rollouts", str(given.rollouts)]
    words += ["--steps", str(given.steps), "--warm-up", str(given.warm_up), "--threads", str(given.threads)]
    return record_of(
        f"versus_{given.shape}_{given.dtype}",
        shlex.join(["python", "benchmarks/versus.py", *words]),
        given.note,
        shape=given.shape,
        dtype=given.dtype,
        rollouts=given.rollouts,
        warm_up=given.warm_up,
        steps=given.steps,
        threads=given.threads,
        settings={case.algorithm: case.overrides for case in cases},
        trl=dict(VERSIONS),
        pairs=[asdict(each) for each in pairs],
    )


def pair(case: Case, store: Path, number: int, given: argparse.Namespace) -> Pair:
    """Both runs, the one that comes first changing from pair to pair."""
    sides = {"ours": lambda out: ours(case, store, out), "trl": lambda out: theirs(case, store, out, given)}
    seconds: dict[str, tuple[float, ...]] = {}
    for side in ("ours", "trl") if number % 2 == 0 else ("trl", "ours"):
        out = store / f"{case.algorithm}_{number}_{side}.jsonl"
        out.unlink(missing_ok=True)
        sides[side](out)
        seconds[side] = read_seconds(out, case.steps)[given.warm_up :]
    return Pair(case.algorithm, seconds["ours"], seconds["trl"])


def ours(case: Case, store: Path, out: Path) -> None:
    words = [f"--{name}={value}" for name, value in asdict(case).items()]
    program = CHECKOUT / "benchmarks" / "versus_ours.py"
    subprocess.run([sys.executable, program, store, f"--out={out}", *words], cwd=CHECKOUT, check=True)


def theirs(case: Case, store: Path, out: Path, given: argparse.Namespace) -> None:
    told = {
        **settings(case.config(store), case.algorithm),
        "algorithm": case.algorithm,
        "policy": store / "models" / "policy",
        "reward": store / "models" / "reward",
        "prompts": store / "prompts.jsonl",
        "out": out,
        "steps": case.steps,
        "rollouts": case.rollouts,
        "micro-batch": MICRO_BATCH,
        "dtype": case.dtype,
        "forced-length": 1,
        "eval-every": 1,
        "eval-responses": 0,
        "seed": 0,
    }
    probe(case.algorithm, told, given.environments.resolve(), TRL_PROBE, threads=case.threads)


def read_seconds(out: Path, steps: int) -> tuple[float, ...]:
    """Raises ValueError where a run has taken another number of steps than it was asked for."""
    seconds = tuple(json.loads(line)["seconds"] for line in out.read_text().splitlines())
    if len(seconds) != steps:
        raise ValueError(f"{out.name} has {len(seconds)} steps, not {steps}")
    return seconds


# -------------------------------------------------------------------------------------------------------------- record
def pairs_of(record: Mapping[str, Any]) -> list[Pair]:
    return [Pair(each["algorithm"], tuple(each["ours"]), tuple(each["trl"])) for each in record["pairs"]]


def table(record: Mapping[str, Any]) -> str:
    lines = opening(record, f"Seconds a step beside TRL: {record['shape']}, {record['dtype']}", summary(record))
    head = ("algorithm", "TRL", "ours, s", "TRL, s", "ours, samples/s", "TRL, samples/s", "TRL / ours", "min to max")
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    pairs = pairs_of(record)
    for name in dict.fromkeys(pair.algorithm for pair in pairs):
        own = [pair for pair in pairs if pair.algorithm == name]
        ours_s, trl_s = (statistics.median(s for p in own for s in getattr(p, side)) for side in ("ours", "trl"))
        ratios = [pair.ratio for pair in own]
        cells = [TITLES[name], record["trl"][name], f"{ours_s:.2f}", f"{trl_s:.2f}"]
        cells += [f"{record['rollouts'] / seconds:.1f}" for seconds in (ours_s, trl_s)]
        cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "What is not the same:", "", *(f"- {sentence}" for sentence in NOT_THE_SAME)]
    return "\n".join([*lines, *closing(record)])


def summary(record: Mapping[str, Any]) -> str:
    return (
        f"A step: {record['rollouts']} rollouts of {PROMPT_TOKENS} + {RESPONSE_TOKENS} tokens, always all of them, one "
        f"epoch, one optimizer step, micro-batches of {MICRO_BATCH} rows; RLOO and GRPO sample 4 responses to each "
        f"prompt. Both sides begin with the same random weights. Each may use {record['threads']} threads: TRL as "
        f"OpenMP threads of its one process, ours as {record['threads']} engines of one thread and a trainer of "
        f"{record['threads']} threads, in turns, and servers of one thread. A run takes {record['steps']} steps, of "
        f"which the first {record['warm_up']} are left out; seconds are medians over the others of all runs. The ratio "
        "is the median over pairs of runs in turns, with its range."
    )


NOT_THE_SAME = (
    "TRL samples with transformers, ours with vLLM; TRL scores RLOO and GRPO with the reward model in one call of a "
    "function, ours with a server while sampling goes on.",
    "In bfloat16 TRL's weights, gradients and optimizer are bfloat16; ours keep float32 weights, sums of gradients and "
    "moments beside them, which is more work.",
    "TRL's PPO takes the sampling policy's log-probabilities from a forward pass as ours does; its one optimizer holds "
    "policy and critic.",
    "Every step of ours is followed by a weight sync to the engines with a checksum; TRL samples from the weights that "
    "it trains.",
)


def plot(pairs: Sequence[Pair], path: Path) -> None:
    """Every step's seconds, both sides beside each other."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(pair.algorithm for pair in pairs))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for offset, side in ((-0.15, "ours"), (0.15, "trl")):
        for place, name in enumerate(names):
            seconds = [s for pair in pairs if pair.algorithm == name for s in getattr(pair, side)]
            colour, label = ("C0", "ours") if side == "ours" else ("C1", "TRL")
            axes.plot([place + offset] * len(seconds), seconds, "o", color=colour, alpha=0.5)
            axes.hlines(statistics.median(seconds), place + offset - 0.1, place + offset + 0.1, color=colour)
            if place == 0:
                axes.plot([], [], "o", color=colour, label=label)
    axes.set_xticks(range(len(names)), [TITLES[name] for name in names])
    axes.set_ylabel("seconds a step")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
