"""Do rounds pay? Three rounds of labels against one round with as many, from the same SFT model.

    python benchmarks/iteration.py --seeds 3 4 5

Each arm labels the same number of prompts and takes the same number of PPO steps. ``unsure`` labels, from the second
round on, what the reward model is least sure of; ``random`` any new prompts of the newest policy; ``one_round`` labels
everything at once, on samples of the SFT model. Gold is the ground truth's grade of held-out answers, which no model
ever sees. Writes benchmarks/results/iteration.json, .md and .png; what a former call has finished is not done again.
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

PRESET = "configs/iterate.yaml"
ROUNDS, PROMPTS, STEPS = 3, 500, 14  # of each round
SHARED = ("model", "sft")
ARMS: Mapping[str, Sequence[str]] = {
    "unsure": (),
    "random": ("iteration.choose=random",),
    "one_round": (
        "iteration.num_rounds=1",
        f"iteration.prompts_per_round={ROUNDS * PROMPTS}",
        f"ppo.num_steps={ROUNDS * STEPS}",
    ),
}
COMMON = (
    f"iteration.num_rounds={ROUNDS}",
    f"iteration.prompts_per_round={PROMPTS}",
    f"ppo.num_steps={STEPS}",
    "ppo.kl.coef=0.05",
    "ppo.eval_every=0",
)


@dataclass(frozen=True)
class Arm:
    """One arm with one seed: gold of the SFT model and of each round's, and what the last reward model gets right."""

    name: str
    seed: int
    gold: Sequence[float]  # SFT first
    kl: Sequence[float]
    tokens: Sequence[float]
    labels: Sequence[int]  # rankings behind each round's model
    accuracy: Sequence[float]
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / "iteration", help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; it changes no number but seconds")
    parser.add_argument("--note", default="", help="a sentence for the record")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        command("sft", seed, arguments.runs / f"seed{seed}")
    tasks = [(seed, name) for seed in arguments.seeds for name in arguments.arms]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        arms = list(pool.map(lambda task: run(arguments.runs / f"seed{task[0]}", *task), tasks))
    write(arms, arguments)
    print((RESULTS / "iteration.md").read_text())
    return 0


def run(shared: Path, seed: int, name: str) -> Arm:
    """Run an arm from copies of the shared stages, and read what its last evaluation says."""
    directory = shared.with_name(f"{shared.name}_{name}")
    if not directory.exists():
        for stage in SHARED:
            shutil.copytree(shared / stage, directory / stage)
    command("iterate", seed, directory, *COMMON, *ARMS[name])
    summary = json.loads((directory / "rounds.json").read_text())
    models, rounds = summary["models"].values(), summary["rounds"]
    return Arm(
        name=name,
        seed=seed,
        gold=[model["gold"]["mean"] for model in models],
        kl=[model["kl_per_response"]["mean"] for model in models],
        tokens=[model["tokens"]["mean"] for model in models],
        labels=[done["labels"] for done in rounds],
        accuracy=[done["reward_model_accuracy"] for done in rounds],
        seconds=sum(done["seconds"] for done in rounds),
    )


def command(verb: str, seed: int, directory: Path, *overrides: str) -> None:
    call = [sys.executable, "-m", "launch.cli", verb, PRESET, f"seed={seed}", f"output_dir={directory}", *overrides]
    subprocess.run(call, cwd=CHECKOUT, check=True)


# -------------------------------------------------------------------------------------------------------------- record
def write(arms: Sequence[Arm], arguments: argparse.Namespace) -> None:
    command = shlex.join(["python", "benchmarks/iteration.py", "--seeds", *map(str, arguments.seeds)])
    settings = {name: [*COMMON, *overrides] for name, overrides in ARMS.items()}
    content = {"settings": settings, "arms": [asdict(arm) for arm in arms]}
    record = record_of("iteration", command, arguments.note, **content)
    plot(arms, write_record(record, page(record, arms)))


def page(record: Mapping[str, Any], arms: Sequence[Arm]) -> str:
    lines = [*opening(record, "Round after round", SUMMARY), *table(arms), "", *against(arms), *closing(record)]
    return "\n".join(lines)


SUMMARY = (
    f"Held-out gold (0 to 1) of the SFT model and after each round, mean over seeds with its 95% interval (Student's "
    f"t). Every arm labels {ROUNDS * PROMPTS} prompts and takes {ROUNDS * STEPS} PPO steps in all. Accuracy is the "
    "last reward model's on held-out pairs of its own arm, which differ from arm to arm; KL in nats a response."
)


def table(arms: Sequence[Arm]) -> list[str]:
    """Markdown: a line an arm."""
    head = ["arm", "SFT", *(f"round {n}" for n in range(1, ROUNDS + 1)), "accuracy", "KL", "tokens", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, own in by_name(arms).items():
        golds = [text(*interval(column)) for column in zip(*(arm.gold for arm in own), strict=True)]
        golds += ["-"] * (ROUNDS + 1 - len(golds))
        rest = [
            f"{statistics.fmean(arm.accuracy[-1] for arm in own):.3f}",
            f"{statistics.fmean(arm.kl[-1] for arm in own):.2f}",
            f"{statistics.fmean(arm.tokens[-1] for arm in own):.1f}",
            f"{statistics.fmean(arm.seconds for arm in own):.0f}",
        ]
        lines.append("| " + " | ".join([name.replace("_", " "), *golds, *rest]) + " |")
    return lines


def against(arms: Sequence[Arm]) -> list[str]:
    """What each arm's last gold has over that of one round, seed by seed."""
    last = {(arm.name, arm.seed): arm.gold[-1] for arm in arms}
    lines = []
    for name in by_name(arms):
        seeds = [seed for other, seed in last if other == name and ("one_round", seed) in last]
        pairs = [last[name, seed] - last["one_round", seed] for seed in seeds]
        if name != "one_round" and pairs:
            lines.append(f"- {name}, after {ROUNDS} rounds, minus one round: {text(*interval(pairs))} gold")
    return lines


def by_name(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    return {name: [arm for arm in arms if arm.name == name] for name in dict.fromkeys(arm.name for arm in arms)}


def plot(arms: Sequence[Arm], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, own in by_name(arms).items():
        gold = [statistics.fmean(column) for column in zip(*(arm.gold for arm in own), strict=True)]
        labels = [0, *(statistics.fmean(column) for column in zip(*(arm.labels for arm in own), strict=True))]
        axes.plot(labels, gold, marker="o", label=name.replace("_", " "))
    axes.set_xlabel("rankings behind the model")
    axes.set_ylabel("held-out gold, mean over seeds")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
