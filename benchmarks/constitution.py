"""Constitution on against off: refusals of what is harmful, refusals of what is not.

    python benchmarks/constitution.py --seeds 0 1 2
    python benchmarks/constitution.py --seeds 0 --smoke

Three arms from one SFT model: ``off`` (people compare, reward model, PPO), ``revised`` (the SFT model is first trained
on its responses as a critic and a reviser leave them), ``constitution`` (revised, and a judge compares three quarters
of the pairs by drawn principles). Critic and judge are simulated, with a known error rate. Writes
benchmarks/results/constitution.json, .md and .png; what a former call has finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.judge_error import PAIRS  # noqa: E402
from benchmarks.judge_error import SMOKE as SMALL  # noqa: E402
from benchmarks.learning import PRESET, command, interval, text  # noqa: E402
from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402

NAME = "constitution"
ARMS = ("off", "revised", "constitution")
PRINCIPLES = "judge.constitution=configs/constitutions/microworld.yaml"
ERROR_RATE = 0.1
SETTINGS = (*PAIRS, "revision.num_prompts=2000", "revision.num_rounds=2")
SMOKE = (*SMALL, "revision.num_prompts=100")
HARMLESS = ("fact", "false_premise", "open")  # those that do not even sound harmful


@dataclass(frozen=True)
class Outcome:
    """One model of one arm. Shares are of held-out prompts."""

    arm: str
    model: str  # sft: before comparisons; ppo: after
    seed: int
    refused_harmful: float
    refused_sounds_harmful: float
    refused_harmless: float
    gold: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / NAME, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--error-rate", type=float, default=ERROR_RATE, help="of critic and judge")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; it changes no number")
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--smoke", action="store_true", help="a tiny world; the record goes where the runs go")
    arguments = parser.parse_args()
    settings = [*SETTINGS, *(SMOKE if arguments.smoke else ())]
    judge = ["judge.kind=simulated", f"judge.error_rate={arguments.error_rate}", PRINCIPLES]
    for seed in arguments.seeds:
        prepare(arguments.runs / f"seed{seed}", seed, [*settings, *judge])

    def outcomes(task: tuple[int, str]) -> list[Outcome]:
        seed, arm = task
        return run(arguments.runs / f"seed{seed}", arm, seed, settings, judge)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        lists = pool.map(outcomes, [(seed, arm) for seed in arguments.seeds for arm in ARMS])
        found = [outcome for each in lists for outcome in each]
    folder = arguments.runs if arguments.smoke else RESULTS
    write(found, arguments, settings, folder)
    print((folder / f"{NAME}.md").read_text())
    return 0


def prepare(directory: Path, seed: int, settings: Sequence[str]) -> None:
    """The SFT model and its revised responses, shared by all arms."""
    if not (directory / "constitution" / "demonstrations.jsonl").exists():
        command("constitution revise", seed, directory, *settings)


def run(shared: Path, arm: str, seed: int, settings: Sequence[str], judge: Sequence[str]) -> list[Outcome]:
    """The chain of one arm. The revised arms train the SFT model further: it is their base."""
    directory = shared.with_name(f"{shared.name}_{arm}")
    own: list[str] = []
    if arm == "off":
        for stage in ("model", "sft"):
            if not (directory / stage).exists():
                shutil.copytree(shared / stage, directory / stage)
    else:
        demonstrations = shared / "constitution" / "demonstrations.jsonl"
        own = [f"model.path={shared / 'sft' / 'policy'}", f"sft.demonstrations={demonstrations}", "sft.num_epochs=1"]
    if arm == "constitution":
        own += [*judge, "judge.share=0.75"]
    command("pipeline", seed, directory, *settings, *own)
    summary = json.loads((directory / "summary.json").read_text())
    return [outcome(summary, arm, model, seed) for model in ("sft", "ppo")]


def outcome(summary: Mapping[str, Any], arm: str, model: str, seed: int) -> Outcome:
    refused = {kind: measures["refused"][model] for kind, measures in summary["by_kind"].items()}
    return Outcome(
        arm=arm,
        model=model,
        seed=seed,
        refused_harmful=refused["harmful"],
        refused_sounds_harmful=refused["sounds_harmful"],
        refused_harmless=statistics.fmean(refused[kind] for kind in HARMLESS),
        gold=summary["gold"][model]["mean"],
    )


# -------------------------------------------------------------------------------------------------------------- record
def write(outcomes: Sequence[Outcome], arguments: argparse.Namespace, settings: Sequence[str], folder: Path) -> None:
    content = {"preset": PRESET, "settings": list(settings), "outcomes": [asdict(outcome) for outcome in outcomes]}
    record = record_of(NAME, command_line(arguments), arguments.note, **content)
    plot(outcomes, write_record(record, table(record, outcomes), folder))


def command_line(arguments: argparse.Namespace) -> str:
    """The command that makes the record again."""
    rate = [] if arguments.error_rate == ERROR_RATE else ["--error-rate", f"{arguments.error_rate:g}"]
    smoke = ["--smoke"] if arguments.smoke else []
    return shlex.join(["python", f"benchmarks/{NAME}.py", "--seeds", *map(str, arguments.seeds), *rate, *smoke])


SUMMARY = (
    "Shares of held-out prompts that are refused, mean over seeds with its 95% interval (Student's t): harmful ones "
    "should be, the others should not. SFT is the model before comparisons, in the revised arms after it has learned "
    "from its revised responses."
)
COLUMNS = {
    "refused_harmful": "refuses the harmful",
    "refused_sounds_harmful": "refuses what only sounds harmful",
    "refused_harmless": "refuses other harmless requests",
    "gold": "gold",
}


def table(record: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    lines = opening(record, "Constitution on and off", SUMMARY)
    lines += ["| arm | model | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for arm, model in dict.fromkeys((outcome.arm, outcome.model) for outcome in outcomes):
        own = [outcome for outcome in outcomes if (outcome.arm, outcome.model) == (arm, model)]
        cells = [text(*interval([getattr(outcome, name) for outcome in own])) for name in COLUMNS]
        lines.append("| " + " | ".join([arm, model, *cells]) + " |")
    return "\n".join([*lines, *closing(record)])


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Refusals of the harmful over refusals of what only sounds so: the upper left corner is right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for arm in ARMS:
        own = [outcome for outcome in outcomes if outcome.arm == arm]
        for model, marker in (("sft", "o"), ("ppo", "s")):
            points = [outcome for outcome in own if outcome.model == model]
            axes.plot(
                [outcome.refused_sounds_harmful for outcome in points],
                [outcome.refused_harmful for outcome in points],
                marker,
                label=f"{arm}, {model}",
                color=f"C{ARMS.index(arm)}",
                alpha=0.8,
            )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("refuses what only sounds harmful")
    axes.set_ylabel("refuses the harmful")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
