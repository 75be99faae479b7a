"""How a judge's errors move the reward model and gold: the same comparisons, labelled with a known error rate.

    python benchmarks/judge_error.py --seeds 0 1 2
    python benchmarks/judge_error.py --seeds 0 --rates 0 0.4 --smoke

A simulated judge compares pairs by the ground truth and turns a known share of them around; people rank the same pairs
for comparison. Reward model and PPO then follow the labels. Writes benchmarks/results/judge_error.json, .md and .png;
what a former call has finished is not done again.
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

from benchmarks.learning import command, interval, text  # noqa: E402
from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402

NAME = "judge_error"
RATES = (0.0, 0.2, 0.4)
PEOPLE = "people"
PAIRS = (
    "comparison.num_prompts=2000",
    "comparison.num_heldout_prompts=300",
    "comparison.responses_per_prompt=2",
    "ppo.eval_every=0",
    "ppo.checkpoint_every=0",
)
SMOKE = (
    "data.world.num_train_prompts=300",
    "data.world.num_heldout_prompts=100",
    "data.world.demonstrations_per_prompt=1",
    "sft.num_epochs=0.5",
    "comparison.num_prompts=200",
    "comparison.num_heldout_prompts=60",
    "ppo.num_steps=2",
    "ppo.rollouts_per_step=32",
    "ppo.eval_prompts=20",
    "evaluation.num_prompts=40",
)


@dataclass(frozen=True)
class Outcome:
    """One run: whose labels, how many of them were wrong, and what came of it."""

    label: str
    rate: float | None  # None: people
    seed: int
    observed_error: float  # of decided pairs, against gold
    decided: int
    accuracy: float  # of the reward model, held-out pairs that people ranked
    gold_sft: float
    gold: float
    kl_per_response: float
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / NAME, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--method", choices=["ppo", "dpo"], default="ppo")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; it changes no number")
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--smoke", action="store_true", help="a tiny world; the record goes where the runs go")
    arguments = parser.parse_args()
    settings = [*PAIRS, *(SMOKE if arguments.smoke else ())]
    for seed in arguments.seeds:
        command("sft", seed, arguments.runs / f"seed{seed}", *settings)
    arms: list[float | None] = [None, *arguments.rates]

    def outcome(task: tuple[int, float | None]) -> Outcome:
        seed, rate = task
        return run(arguments.runs / f"seed{seed}", rate, seed, arguments.method, settings)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(outcome, [(seed, rate) for seed in arguments.seeds for rate in arms]))
    folder = arguments.runs if arguments.smoke else RESULTS
    write(outcomes, arguments, settings, folder)
    print((folder / f"{NAME}.md").read_text())
    return 0


def run(shared: Path, rate: float | None, seed: int, method: str, settings: Sequence[str]) -> Outcome:
    """The whole chain after SFT, from a copy of the shared stages."""
    label = PEOPLE if rate is None else f"{rate:g}"
    directory = shared.with_name(f"{shared.name}_{method}_{label}")
    for stage in ("model", "sft"):
        if not (directory / stage).exists():
            shutil.copytree(shared / stage, directory / stage)
    judge = [] if rate is None else ["judge.kind=simulated", f"judge.error_rate={rate}"]
    command("pipeline", seed, directory, *settings, f"methods=[{method}]", *judge)
    summary = json.loads((directory / "summary.json").read_text())
    observed, decided = label_error(directory, seed, settings)
    trained = summary["reward_model"] or {}
    return Outcome(
        label=label,
        rate=rate,
        seed=seed,
        observed_error=observed,
        decided=decided,
        accuracy=trained.get("accuracy", float("nan")),
        gold_sft=summary["gold"]["sft"]["mean"],
        gold=summary["gold"][method]["mean"],
        kl_per_response=summary["kl_per_response"][method]["mean"],
        seconds=summary["total_seconds"],
    )


def label_error(directory: Path, seed: int, settings: Sequence[str]) -> tuple[float, int]:
    """The share of decided training pairs that gold orders the other way, equal gold left out, and their number."""
    from benchmarks.learning import PRESET
    from rlhf_ray.config.load import load_config
    from rlhf_ray.data.tasks import build_task
    from rlhf_ray.pipeline.comparison import read_rankings

    task = build_task(load_config(CHECKOUT / PRESET, [f"seed={seed}", *settings]).data)
    prompts = {prompt.prompt_id: prompt for prompt in task.prompts("train")}
    wrong = decided = 0
    for ranking in read_rankings(directory / "comparison" / "rankings_train.jsonl"):
        golds = [task.grade(prompts[ranking.prompt_id], response)["gold"] for response in ranking.responses]
        for winner, loser in ranking.pairs:
            if abs(golds[winner] - golds[loser]) > 1e-9:
                decided += 1
                wrong += golds[winner] < golds[loser]
    return (wrong / decided if decided else float("nan")), decided


# -------------------------------------------------------------------------------------------------------------- record
def write(outcomes: Sequence[Outcome], arguments: argparse.Namespace, settings: Sequence[str], folder: Path) -> None:
    content = {"settings": list(settings), "method": arguments.method, "outcomes": [asdict(each) for each in outcomes]}
    record = record_of(NAME, command_line(arguments), arguments.note, **content)
    plot(outcomes, write_record(record, table(record, outcomes), folder), arguments.method)


def command_line(arguments: argparse.Namespace) -> str:
    """The command that makes the record again."""
    seeds, rates = map(str, arguments.seeds), [f"{rate:g}" for rate in arguments.rates]
    chosen = [] if tuple(arguments.rates) == RATES else ["--rates", *rates]
    method = [] if arguments.method == "ppo" else ["--method", arguments.method]
    smoke = ["--smoke"] if arguments.smoke else []
    return shlex.join(["python", f"benchmarks/{NAME}.py", "--seeds", *seeds, *chosen, *method, *smoke])


SUMMARY = (
    "Mean over seeds with its 95% interval (Student's t). Wrong labels: the share of decided training pairs that gold "
    "orders the other way. The reward model is measured on held-out pairs that people ranked, whoever labelled the "
    "training pairs; gold is that of held-out responses, and its difference is taken seed by seed. People tie more "
    "often than the judge and decide fewer pairs."
)


def table(record: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    lines = opening(record, "A judge with a known error rate", SUMMARY)
    head = [
        "error rate",
        "wrong labels",
        "decided pairs",
        "reward model",
        "gold, SFT",
        f"gold, {record['method']}",
        "less than without errors",
        "KL",
    ]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    sure = {outcome.seed: outcome.gold for outcome in outcomes if outcome.rate == 0}
    for label in labels(outcomes):
        own = [outcome for outcome in outcomes if outcome.label == label]
        cells = [
            label,
            f"{statistics.fmean(outcome.observed_error for outcome in own):.3f}",
            f"{statistics.fmean(outcome.decided for outcome in own):.0f}",
            text(*interval([outcome.accuracy for outcome in own])),
            text(*interval([outcome.gold_sft for outcome in own])),
            text(*interval([outcome.gold for outcome in own])),
            lost(own, sure),
            f"{statistics.fmean(outcome.kl_per_response for outcome in own):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *closing(record)])


def lost(own: Sequence[Outcome], sure: Mapping[int, float]) -> str:
    """What an arm has less of than the judge without errors, seed by seed."""
    pairs = [sure[outcome.seed] - outcome.gold for outcome in own if outcome.seed in sure]
    return "-" if not pairs or own[0].rate == 0 else text(*interval(pairs))


def labels(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.label for outcome in outcomes))


def plot(outcomes: Sequence[Outcome], path: Path, method: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    rates = sorted({outcome.rate for outcome in outcomes if outcome.rate is not None})
    for name, title in (("accuracy", "reward model, held-out pairs"), ("gold", f"gold after {method}")):
        means = [statistics.fmean(getattr(o, name) for o in outcomes if o.rate == rate) for rate in rates]
        axes.plot(rates, means, marker="o", label=title)
        people = [getattr(o, name) for o in outcomes if o.rate is None]
        axes.axhline(
            statistics.fmean(people), linestyle=":", color=axes.lines[-1].get_color(), label=f"{title}: people"
        )
    axes.set_xlabel("the judge's error rate")
    axes.set_ylabel("mean over seeds")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
