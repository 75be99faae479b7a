"""Which algorithm learns most from how many sampled tokens: held-out gold over tokens, ours and TRL's.

    python benchmarks/learning.py --seeds 0 1 2
    python benchmarks/learning.py --seeds 0 --algorithms ppo grpo --no-trl

Every algorithm starts from the same SFT model with the same reward model and samples the same number of responses.
Gold is the ground truth's grade of held-out answers, which no model ever sees. Writes benchmarks/results/learning.json,
.md and .png; what a former call has finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.learning_point import Point  # noqa: E402
from benchmarks.record_runs import RESULTS, machine_line, record_of, write_record  # noqa: E402

PRESET = "configs/quickstart.yaml"
STEPS, ROLLOUTS, EVAL_EVERY = 30, 128, 5
SHARED = ("model", "sft", "comparison", "reward_model")
EVAL_PROMPTS, EVAL_RESPONSES = 400, 4
COMMON = (
    f"ppo.num_steps={STEPS}",
    f"ppo.rollouts_per_step={ROLLOUTS}",
    f"ppo.eval_every={EVAL_EVERY}",
    f"ppo.eval_prompts={EVAL_PROMPTS}",
    f"ppo.eval_responses={EVAL_RESPONSES}",
    "ppo.policy_optimizer.warmup_fraction=0",
    "ppo.critic_optimizer.warmup_fraction=0",
)
# Advantages of unit deviation, whatever the rewards' scale, make larger steps: the rate is that of TRL's GRPO.
SLOWER = ("ppo.policy_optimizer.learning_rate=1e-4",)
GROUPS = ("ppo.responses_per_prompt=4", "ppo.kl.placement=loss", "ppo.kl.estimator=k3_unbiased")
ALGORITHMS: Mapping[str, Sequence[str]] = {
    "ppo": (),
    "grpo": ("ppo.advantages=grpo", "ppo.loss.aggregation=sequence_mean", *GROUPS, *SLOWER),
    "dr_grpo": ("ppo.advantages=dr_grpo", "ppo.loss.aggregation=constant", *GROUPS),
    "rloo": (
        "ppo.advantages=rloo",
        "ppo.loss.surrogate=response",
        "ppo.loss.aggregation=sequence_sum",
        "ppo.responses_per_prompt=4",
    ),
    "opo": ("ppo.advantages=opo", *GROUPS),
    "remax": ("ppo.advantages=remax",),
    "reinforce_pp": ("ppo.advantages=reinforce_pp",),
    "reinforce_pp_baseline": ("ppo.advantages=reinforce_pp_baseline", *GROUPS),
    "gspo": (
        "ppo.advantages=grpo",
        "ppo.loss.surrogate=gspo",
        "ppo.loss.clip_ratio=3e-3",
        "ppo.loss.aggregation=sequence_mean",
        *GROUPS,
        *SLOWER,
    ),
    "cispo": ("ppo.advantages=grpo", "ppo.loss.surrogate=cispo", *GROUPS, *SLOWER),
}
TRL = {"trl_ppo": "ppo", "trl_rloo": "rloo", "trl_grpo": "grpo"}
# Two-sided 95% quantiles of Student's t by degrees of freedom, for means over few seeds.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


@dataclass(frozen=True)
class Curve:
    """One algorithm with one seed."""

    algorithm: str
    seed: int
    points: Sequence[Point]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / "learning", help="where the runs go")
    parser.add_argument("--environments", type=Path, default=CHECKOUT / "runs" / "environments", help="of TRL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", choices=sorted(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="curves made at once; it changes no number")
    parser.add_argument("--note", default="", help="a sentence for the record")
    arguments = parser.parse_args()
    shared = {seed: prepared(arguments.runs / f"seed{seed}", seed) for seed in arguments.seeds}
    names = [*arguments.algorithms, *([] if arguments.no_trl else TRL)]
    if not arguments.no_trl:
        make_environments(arguments.environments)

    def curve(task: tuple[int, str]) -> Curve:
        seed, name = task
        if name in TRL:
            return theirs(name, shared[seed], seed, arguments.environments)
        return ours(name, shared[seed], seed)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        curves = list(pool.map(curve, [(seed, name) for seed in arguments.seeds for name in names]))
    write(curves, arguments)
    print((RESULTS / "learning.md").read_text())
    return 0


def prepared(directory: Path, seed: int) -> Path:
    """A run with SFT and reward model, shared by all algorithms."""
    command("reward", seed, directory)
    return directory


def ours(name: str, shared: Path, seed: int) -> Curve:
    """Train from copies of the shared stages; read held-out gold from the run's log."""
    directory = shared.with_name(f"{shared.name}_{name}")
    if not directory.exists():
        for stage in SHARED:
            shutil.copytree(shared / stage, directory / stage)
    command("ppo", seed, directory, *COMMON, *ALGORITHMS[name])
    points, tokens = [], 0.0
    for line in (directory / "ppo" / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        tokens += metrics.get("ppo/response_length", 0.0) * ROLLOUTS  # step 0 is before the first
        if "gold/heldout_mean" in metrics:
            gold, score = metrics["gold/heldout_mean"], metrics["gold/heldout_score"]
            points.append(Point(int(metrics["step"]), tokens, gold, score))
    return Curve(name, seed, points)


def theirs(name: str, shared: Path, seed: int, environments: Path) -> Curve:
    from benchmarks.learning_trl import trl_curve

    points = trl_curve(
        algorithm=TRL[name],
        run=shared,
        seed=seed,
        steps=STEPS,
        rollouts=ROLLOUTS,
        eval_every=EVAL_EVERY,
        eval_responses=EVAL_RESPONSES,
        out=shared.with_name(f"{shared.name}_{name}.jsonl"),
        environments=environments,
    )
    return Curve(name, seed, points)


def make_environments(folder: Path) -> None:
    """Install TRL where it is not yet, before several curves would at once."""
    from benchmarks.parity_trl import ENVIRONMENTS, make

    for environment in ENVIRONMENTS:
        make(environment, folder)


def command(verb: str, seed: int, directory: Path, *overrides: str) -> None:
    call = [
        sys.executable,
        "-m",
        "launch.cli",
        *verb.split(),
        PRESET,
        f"seed={seed}",
        f"output_dir={directory}",
        *overrides,
    ]
    subprocess.run(call, cwd=CHECKOUT, check=True)


# -------------------------------------------------------------------------------------------------------------- record
def write(curves: Sequence[Curve], arguments: argparse.Namespace) -> None:
    settings = {name: [*COMMON, *overrides] for name, overrides in ALGORITHMS.items()}
    content = {"settings": settings, "curves": [asdict(curve) for curve in curves]}
    record = record_of("learning", command_line(arguments), arguments.note, **content)
    plot(curves, write_record(record, table(record, curves)))


def command_line(arguments: argparse.Namespace) -> str:
    """The command that makes the record again; how many curves at once and where they lie does not matter to it."""
    chosen = [] if set(arguments.algorithms) == set(ALGORITHMS) else ["--algorithms", *arguments.algorithms]
    without = ["--no-trl"] if arguments.no_trl else []
    return shlex.join(["python", "benchmarks/learning.py", "--seeds", *map(str, arguments.seeds), *chosen, *without])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95% interval over seeds (Student's t); NaN for one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def mean_curve(curves: Sequence[Curve], name: str) -> list[Point]:
    """The mean over seeds of an algorithm's curve; empty where it was not run."""
    own = [curve.points for curve in curves if curve.algorithm == name]
    return [
        Point(
            step=column[0].step,
            sampled_tokens=statistics.fmean(point.sampled_tokens for point in column),
            gold=statistics.fmean(point.gold for point in column),
            score=statistics.fmean(point.score for point in column),
        )
        for column in zip(*own, strict=True)
    ]


def reaching(points: Sequence[Point], gold: float) -> float:
    """Sampled tokens until a curve first reaches ``gold``, linear between its points; infinite where it never does."""
    if points[0].gold >= gold:
        return points[0].sampled_tokens
    for before, after in pairwise(points):
        if after.gold >= gold:
            share = (gold - before.gold) / (after.gold - before.gold)
            return before.sampled_tokens + share * (after.sampled_tokens - before.sampled_tokens)
    return math.inf


def table(record: Mapping[str, Any], curves: Sequence[Curve]) -> str:
    lines = ["# Learning", "", f"Command: `{record['command']}`", "", machine_line(record), "", SUMMARY, ""]
    lines += [*summary_table(curves), "", f"{BY_STEP} ({ROLLOUTS} responses a step):", "", *step_table(curves)]
    if any(curve.algorithm in TRL for curve in curves):
        from benchmarks.learning_trl import NOT_THE_SAME

        lines += ["", AGAINST, "", *against_table(curves)]
        lines += ["", "What is not the same in TRL's runs:", "", *(f"- {sentence}" for sentence in NOT_THE_SAME)]
    return "\n".join([*lines, "", f"Versions: {record['versions']}", ""])


SUMMARY = (
    f"Held-out gold (0 to 1) over {STEPS} steps of {ROLLOUTS} responses, with its 95% interval over seeds (Student's "
    "t). The best is the largest of a seed's evaluations, so that chance helps it; the mean over steps is that of all "
    "evaluations after step 0. The score is the reward model's, of held-out responses at the end."
)
BY_STEP = "Mean gold over seeds after so many steps"
LEVELS = (0.75, 0.8, 0.82, 0.84)
AGAINST = (
    "The same gold with no more samples? Thousands of sampled tokens until the mean over seeds first reaches a gold, "
    "interpolated between evaluations: ours / TRL's (a dash: never); then ours minus TRL's gold, mean of all "
    "evaluations after step 0 with the 95% interval over seeds."
)


def summary_table(curves: Sequence[Curve]) -> list[str]:
    """Markdown: a line an algorithm, its gold and its score."""
    lines = [
        "| algorithm | gold at the end | best gold | mean over steps | score at the end |",
        "|---|---|---|---|---|",
    ]
    for name in names_of(curves):
        own = [curve.points for curve in curves if curve.algorithm == name]
        golds = [text(*interval([f(points) for points in own])) for f in (last_gold, best_gold, mean_gold)]
        score = statistics.fmean(points[-1].score for points in own)
        lines.append("| " + " | ".join([name, *golds, f"{score:.2f}"]) + " |")
    return lines


def step_table(curves: Sequence[Curve]) -> list[str]:
    """Markdown: a line an algorithm, a column an evaluation."""
    steps = [point.step for point in mean_curve(curves, curves[0].algorithm)]
    lines = ["| algorithm | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|"]
    for name in names_of(curves):
        golds = [f"{point.gold:.3f}" for point in mean_curve(curves, name)]
        lines.append("| " + " | ".join([name, *golds]) + " |")
    return lines


def against_table(curves: Sequence[Curve]) -> list[str]:
    """Markdown: a line for each algorithm that both have."""
    head = ["algorithm", *(f"gold {level}" for level in LEVELS), "ours - TRL's"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for theirs_name, name in TRL.items():
        own, other = mean_curve(curves, name), mean_curve(curves, theirs_name)
        if own and other:
            pairs = [" / ".join(thousands(reaching(points, level)) for points in (own, other)) for level in LEVELS]
            cells = [name, *pairs, text(*interval(differences(curves, name, theirs_name)))]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def thousands(tokens: float) -> str:
    return f"{tokens / 1000:.1f}" if tokens < math.inf else "-"


def differences(curves: Sequence[Curve], name: str, other: str) -> list[float]:
    """By seed: the mean gold of ``name`` over its evaluations, minus that of ``other``."""
    means = {(curve.algorithm, curve.seed): mean_gold(curve.points) for curve in curves}
    seeds = sorted({seed for algorithm, seed in means if algorithm == name})
    return [means[name, seed] - means[other, seed] for seed in seeds if (other, seed) in means]


def curves_of(record: Mapping[str, Any]) -> list[Curve]:
    """The curves of a record."""
    return [
        Curve(curve["algorithm"], curve["seed"], [Point(**point) for point in curve["points"]])
        for curve in record["curves"]
    ]


def names_of(curves: Sequence[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.algorithm for curve in curves))


def mean_gold(points: Sequence[Point]) -> float:
    """Over the evaluations after step 0."""
    return statistics.fmean(point.gold for point in points if point.step > 0)


def last_gold(points: Sequence[Point]) -> float:
    return points[-1].gold


def best_gold(points: Sequence[Point]) -> float:
    return max(point.gold for point in points)


def text(mean: float, half: float) -> str:
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def plot(curves: Sequence[Curve], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for name in names_of(curves):
        points = mean_curve(curves, name)
        tokens, gold = [point.sampled_tokens / 1000 for point in points], [point.gold for point in points]
        axes.plot(tokens, gold, "--" if name in TRL else "-", label=name, marker=".")
    axes.set_xlabel("sampled tokens, thousands")
    axes.set_ylabel("held-out gold, mean over seeds")
    axes.legend(ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
