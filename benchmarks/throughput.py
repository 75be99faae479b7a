"""Tokens a second of a PPO step by schedule, and with more engines, threads and ranks, phase by phase.

    python benchmarks/throughput.py --shape tiny --rounds 3
    python benchmarks/throughput.py --shape m30 --dtype bfloat16
    python benchmarks/throughput.py --smoke

Every arm is a whole run of `rlhf-ray ppo` on a made model; the arms take turns, and each is compared with the first one
of the same round. Sizes of the step are those of roofline.py. Writes benchmarks/results/throughput_SHAPE_DTYPE.json,
.md and .png.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402
from benchmarks.roofline import made, our_run, spread  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402
from rlhf_ray.ledger.accounts import Account  # noqa: E402

NAME = "throughput"
CORRECTED = "ppo.correction.level=token"  # in all arms: a schedule that runs ahead needs it
ENGINES, THREADS, RANKS = "generation.num_engines=2", "training.threads_per_rank=2", "training.num_ranks=2"
ARMS: Mapping[str, Sequence[str]] = {
    "sync": (),
    "sync, 2 engines": (ENGINES,),
    "sync, 2 engines, 2 threads": (ENGINES, THREADS),
    "sync, 2 engines, 2 ranks": (ENGINES, RANKS),
    "one_step_off": ("ppo.schedule=one_step_off",),
    "async, staleness 1": ("ppo.schedule=async",),
    "async, staleness 2": ("ppo.schedule=async", "ppo.max_staleness=2"),
    "async, 2 engines, 2 threads": ("ppo.schedule=async", ENGINES, THREADS),
}
PHASES = ("generate", "score", "update", "sync", "step")
WAITING = {"generators idle": ("generator", Account.FOR_TRAINER), "trainer idle": ("trainer", Account.FOR_ROLLOUTS)}


@dataclass(frozen=True)
class Run:
    """One run of an arm: seconds of a step by phase, and by role and account."""

    arm: str
    round: int
    phases: Mapping[str, float]
    accounts: Mapping[str, Mapping[str, float]]


def main() -> int:
    arguments = parsed()
    work = made(arguments)
    runs: list[Run] = []
    for number in range(arguments.rounds):
        for place, arm in enumerate(arguments.arms):
            given = argparse.Namespace(schedule="sync", override=[CORRECTED, *ARMS[arm]], steps=arguments.steps)
            phases, accounts = our_run(work, given, arguments.runs / "ours" / f"{number}_{place}")
            runs.append(Run(arm, number, phases, accounts))
            print(f"round {number + 1}, {arm}: a step of {phases['step']:.2f} s", flush=True)
    tokens = work.prompts * work.response_tokens
    content = {"work": asdict(work) | {"policy": "", "reward_model": ""}, "arms": {a: ARMS[a] for a in arguments.arms}}
    name = f"{NAME}_{arguments.shape}_{arguments.dtype}"
    record = record_of(name, command_line(arguments), arguments.note, **content, runs=[asdict(run) for run in runs])
    page = table(record, runs, tokens)
    plot(runs, tokens, write_record(record, page, arguments.runs if arguments.smoke else RESULTS))
    print(page)
    return 0


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / NAME, help="where models and runs go")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of all models")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM", help="of the table")
    parser.add_argument("--rounds", type=int, default=3, help="of all arms, in turns")
    parser.add_argument("--steps", type=int, default=5, help="of each run, after two to warm up")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    parser.add_argument("--smoke", action="store_true", help="a small step, two arms; recorded beside the runs")
    arguments = parser.parse_args(words)
    if arguments.smoke:
        arguments.shape, arguments.rounds, arguments.steps = "tiny", 1, 1
        arguments.arms = ["sync", "async, staleness 1"]
    return arguments


def command_line(arguments: argparse.Namespace) -> str:
    """The command that makes the record again."""
    words = ["--shape", arguments.shape, "--rounds", str(arguments.rounds), "--steps", str(arguments.steps)]
    words += [] if arguments.dtype == "float32" else ["--dtype", arguments.dtype]
    words += [] if arguments.arms == list(ARMS) else ["--arms", *arguments.arms]
    return shlex.join(["python", f"benchmarks/{NAME}.py", *words, *(["--smoke"] if arguments.smoke else [])])


# -------------------------------------------------------------------------------------------------------------- record
SUMMARY = (
    "Medians over rounds. Tokens are sampled ones, a second of the step's wall time and for each core of the machine. "
    "The ratio is taken round by round to the first arm, with its least and greatest value. Generate and score are "
    "seconds of a batch, whenever it was collected: where they overlap the update, the step is shorter than the sum. "
    "Idle is the worker-seconds a step in which generators waited for the trainer, or the trainer for rollouts."
)


def table(record: Mapping[str, Any], runs: Sequence[Run], tokens: int) -> str:
    work, cores = record["work"], record["machine"]["cores"]
    title = (
        f"{work['prompts']} prompts of {work['prompt_tokens']} tokens, {work['response_tokens']} sampled each, one "
        f"epoch, one optimizer step, {work['dtype']}. "
    )
    lines = opening(record, "A PPO step by schedule", title + SUMMARY)
    head = ["arm", "tokens/s per core", "step / first arm's", *(f"{phase}, s" for phase in PHASES), *WAITING]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm, own in by_arm(runs).items():
        step = statistics.median(run.phases["step"] for run in own)
        cells = [arm, f"{tokens / step / cores:.0f}", spread(ratios(runs, arm))]
        cells += [f"{statistics.median(run.phases[phase] for run in own):.2f}" for phase in PHASES]
        cells += [f"{statistics.median(idle(run, name) for run in own):.2f}" for name in WAITING]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *closing(record)])


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {arm: [run for run in runs if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)}


def ratios(runs: Sequence[Run], arm: str) -> list[float]:
    """Seconds of a step, over those of the first arm in the same round."""
    first = {run.round: run.phases["step"] for run in by_arm(runs)[runs[0].arm]}
    return [run.phases["step"] / first[run.round] for run in by_arm(runs)[arm]]


def idle(run: Run, name: str) -> float:
    role, account = WAITING[name]
    return run.accounts.get(role, {}).get(str(account), 0.0)


def plot(runs: Sequence[Run], tokens: int, path: Path) -> None:
    """Sampled tokens a second by arm: a dot a round, a bar at the median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    arms = by_arm(runs)
    for place, own in enumerate(arms.values()):
        rates = [tokens / run.phases["step"] for run in own]
        axes.barh(place, statistics.median(rates), color="C0", alpha=0.6)
        axes.plot(rates, [place] * len(rates), "o", color="black", markersize=3)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set_xlabel("sampled tokens a second")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
