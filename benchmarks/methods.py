"""The methods side by side, from the same SFT model and the same comparisons: gold, KL, length, cost.

    python benchmarks/methods.py --seeds 3 4 5

Gold is the ground truth's grade of held-out answers, which no model ever sees. Writes benchmarks/results/methods.json,
.md and .png; what a former call has finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.learning import interval, text  # noqa: E402
from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402
from rlhf_ray.config.load import load_config  # noqa: E402
from rlhf_ray.config.run import RunConfig  # noqa: E402

PRESET = "configs/quickstart.yaml"
SHARED = ("model", "sft", "comparison", "reward_model")
METHODS = ("ppo", "dpo", "raft", "best_of_n")
RLAIF = "rlaif"
ERROR_RATE = 0.1
JUDGE = (
    "judge.kind=simulated",
    f"judge.error_rate={ERROR_RATE}",
    "judge.constitution=configs/constitutions/microworld.yaml",
)
TITLES = {
    "sft": "SFT",
    "ppo": "PPO",
    "dpo": "DPO",
    "raft": "RAFT",
    "best_of_n": "best of n",
    RLAIF: "PPO, judge (RLAIF)",
}
MEASURES = ("gold", "score", "kl_per_response", "tokens")


@dataclass(frozen=True)
class Result:
    """One method with one seed. ``sampled`` counts responses behind the model, those that people ranked included."""

    method: str
    seed: int
    measures: Mapping[str, float]
    sampled: int
    seconds: float  # from the SFT model to this one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / "methods", help="where the runs go")
    parser.add_argument("--shared", type=Path, help="directories seedN with SFT and reward model, of learning.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; it changes no number but seconds")
    parser.add_argument("--note", default="", help="a sentence for the record")
    arguments = parser.parse_args()

    def run(seed: int) -> list[Result]:
        by_people, by_judge = arguments.runs / f"seed{seed}", arguments.runs / f"seed{seed}_{RLAIF}"
        if arguments.shared:
            copy_stages(arguments.shared / by_people.name, by_people, SHARED)
        results = results_of(seed, by_people, METHODS)
        copy_stages(by_people, by_judge, SHARED[:2])
        return results + results_of(seed, by_judge, (RLAIF,), *JUDGE)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = [result for of_seed in pool.map(run, arguments.seeds) for result in of_seed]
    write(results, arguments)
    print((RESULTS / "methods.md").read_text())
    return 0


def copy_stages(source: Path, target: Path, stages: Sequence[str]) -> None:
    if not target.exists():
        for stage in stages:
            shutil.copytree(source / stage, target / stage)


def results_of(seed: int, directory: Path, methods: Sequence[str], *settings: str) -> list[Result]:
    """Run the pipeline with these methods, and read its summary; with a judge's labels the method is PPO."""
    named = {method: "ppo" if method == RLAIF else method for method in methods}
    overrides = [f"seed={seed}", f"output_dir={directory}", f"methods=[{','.join(named.values())}]", *settings]
    subprocess.run([sys.executable, "-m", "launch.cli", "pipeline", PRESET, *overrides], cwd=CHECKOUT, check=True)
    summary = json.loads((directory / "summary.json").read_text())
    config = load_config(CHECKOUT / PRESET, overrides)
    if RLAIF not in named:
        named = {"sft": "sft", **named}
    return [
        Result(
            method=method,
            seed=seed,
            measures={name: summary[name][model]["mean"] for name in MEASURES},
            sampled=sampled(config, model),
            seconds=sum(summary["seconds"][stage] for stage in behind(model)),
        )
        for method, model in named.items()
    ]


def behind(method: str) -> tuple[str, ...]:
    """The stages from the SFT model to a method's."""
    return {
        "sft": (),
        "ppo": ("comparison", "reward_model", "ppo"),
        "dpo": ("comparison", "dpo"),
        "raft": ("comparison", "reward_model", "raft"),
        "best_of_n": ("comparison", "reward_model"),
    }[method]


def sampled(config: RunConfig, method: str) -> int:
    """Responses sampled before the model is there; best of n then samples n for each answer that it gives."""
    ranked = config.comparison.num_prompts * config.comparison.responses_per_prompt
    return {
        "sft": 0,
        "ppo": ranked + config.ppo.num_steps * config.ppo.rollouts_per_step,
        "dpo": ranked,
        "raft": ranked + config.raft.num_prompts * config.raft.responses_per_prompt,
        "best_of_n": ranked,
    }[method]


# -------------------------------------------------------------------------------------------------------------- record
def write(results: Sequence[Result], arguments: argparse.Namespace) -> None:
    command = shlex.join(["python", "benchmarks/methods.py", "--seeds", *map(str, arguments.seeds)])
    record = record_of("methods", command, arguments.note, results=[asdict(result) for result in results])
    page = [*opening(record, "Methods side by side", SUMMARY), *table(results), *closing(record)]
    plot(results, write_record(record, "\n".join(page)))


SUMMARY = (
    "Mean over seeds with its 95% interval (Student's t), on the same held-out prompts. RLAIF: PPO on comparisons "
    f"of the same prompts by a simulated judge, by drawn principles and wrong on {ERROR_RATE:.0%} of pairs; the "
    "score is that of its own reward model. Score: the reward model's. KL to the SFT model in nats a response (of "
    "best of n its upper bound, log n - (n - 1) / n). Responses: sampled before the model is there, those that were "
    "ranked included; best of n samples n more for each answer. Seconds: from the SFT model to this one, stages "
    "after one another."
)


def table(results: Sequence[Result]) -> list[str]:
    """Markdown: a line a method."""
    head = ["method", "gold", "gold - SFT", "score", "KL", "tokens", "responses", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    before = {result.seed: result.measures["gold"] for result in results if result.method == "sft"}
    for method, own in by_method(results).items():
        means = {name: statistics.fmean(r.measures[name] for r in own) for name in MEASURES}
        gains = [result.measures["gold"] - before[result.seed] for result in own]
        cells = [
            TITLES[method],
            text(*interval([result.measures["gold"] for result in own])),
            "" if method == "sft" else text(*interval(gains)),
            f"{means['score']:.2f}",
            f"{means['kl_per_response']:.2f}",
            f"{means['tokens']:.1f}",
            f"{own[0].sampled:,}",
            f"{statistics.fmean(result.seconds for result in own):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    return {name: [r for r in results if r.method == name] for name in dict.fromkeys(r.method for r in results)}


def plot(results: Sequence[Result], path: Path) -> None:
    """Gold over the KL that it cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for method, own in by_method(results).items():
        kl, gold = ([result.measures[name] for result in own] for name in ("kl_per_response", "gold"))
        axes.scatter(kl, gold, label=TITLES[method])
    axes.set_xlabel("KL to the SFT model, nats a response")
    axes.set_ylabel("held-out gold")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def results_in(record: Mapping[str, Any]) -> list[Result]:
    """The results of a record."""
    return [Result(**result) for result in record["results"]]


if __name__ == "__main__":
    sys.exit(main())
