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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.learning_point import Point  # noqa: E402
from benchmarks.record_runs import RESULTS, machine, machine_line  # noqa: E402

PRESET = "configs/quickstart.yaml"
STEPS, ROLLOUTS, EVAL_EVERY = 30, 128, 5
SHARED = ("model", "sft", "comparison", "reward_model")
COMMON = (f"ppo.num_steps={STEPS}", f"ppo.rollouts_per_step={ROLLOUTS}", f"ppo.eval_every={EVAL_EVERY}")
GROUPS = ("ppo.responses_per_prompt=4", "ppo.kl.placement=loss", "ppo.kl.estimator=k3_unbiased")
ALGORITHMS: Mapping[str, Sequence[str]] = {
    "ppo": (),
    "grpo": ("ppo.advantages=grpo", "ppo.loss.aggregation=sequence_mean", *GROUPS),
    "dr_grpo": ("ppo.advantages=dr_grpo", "ppo.loss.aggregation=constant", *GROUPS),
    "rloo": ("ppo.advantages=rloo", "ppo.responses_per_prompt=4"),
    "opo": ("ppo.advantages=opo", *GROUPS),
    "remax": ("ppo.advantages=remax",),
    "reinforce_pp": ("ppo.advantages=reinforce_pp",),
    "reinforce_pp_baseline": ("ppo.advantages=reinforce_pp_baseline", *GROUPS),
    "gspo": ("ppo.advantages=grpo", "ppo.loss.surrogate=gspo", "ppo.loss.aggregation=sequence_mean", *GROUPS),
    "cispo": ("ppo.advantages=grpo", "ppo.loss.surrogate=cispo", *GROUPS),
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
    parser.add_argument("--note", default="", help="a sentence for the record")
    arguments = parser.parse_args()
    curves = []
    for seed in arguments.seeds:
        shared = prepared(arguments.runs / f"seed{seed}", seed)
        curves += [ours(name, shared, seed) for name in arguments.algorithms]
        if not arguments.no_trl:
            curves += [theirs(name, shared, seed, arguments.environments) for name in TRL]
        write(curves, arguments)  # after every seed: an interrupted benchmark leaves a record of what it has
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
        tokens += metrics["ppo/response_length"] * ROLLOUTS
        if "gold/heldout_mean" in metrics:
            points.append(Point(int(metrics["step"]), tokens, metrics["gold/heldout_mean"], metrics["ppo/score_mean"]))
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
        out=shared.with_name(f"{shared.name}_{name}.jsonl"),
        environments=environments,
    )
    return Curve(name, seed, points)


def command(verb: str, seed: int, directory: Path, *overrides: str) -> None:
    call = [sys.executable, "-m", "launch.cli", verb, PRESET, f"seed={seed}", f"output_dir={directory}", *overrides]
    subprocess.run(call, cwd=CHECKOUT, check=True)


# -------------------------------------------------------------------------------------------------------------- record
def write(curves: Sequence[Curve], arguments: argparse.Namespace) -> None:
    record = {
        "name": "learning",
        "command": shlex.join(["python", "benchmarks/learning.py", "--seeds", *map(str, arguments.seeds)]),
        "note": arguments.note,
        "machine": machine(),
        "settings": {name: [*COMMON, *overrides] for name, overrides in ALGORITHMS.items()},
        "curves": [asdict(curve) for curve in curves],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "learning.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "learning.md").write_text(table(record, curves))
    plot(curves, RESULTS / "learning.png")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95% interval over seeds (Student's t); NaN for one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def tokens_to(points: Sequence[Point], gold: float) -> float:
    """Sampled tokens until held-out gold first reaches ``gold``; infinite where it never does."""
    return next((point.sampled_tokens for point in points if point.gold >= gold), math.inf)


def table(record: Mapping[str, Any], curves: Sequence[Curve]) -> str:
    lines = [
        "# Learning",
        "",
        f"Command: `{record['command']}`",
        "",
        machine_line(record),
        "",
        f"Held-out gold (0 to 1) after {STEPS} steps of {ROLLOUTS} responses; mean and 95% interval over seeds. The "
        "third column is the best gold of any evaluation, the fourth the thousands of sampled tokens until gold first "
        "reached 0.8 (a dash: in some seed it never did).",
        "",
        "| algorithm | seeds | gold at the end | best gold | thousand tokens to 0.8 | score at the end |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(curve.algorithm for curve in curves):
        own = [curve.points for curve in curves if curve.algorithm == name and curve.points]
        if not own:
            continue
        gold, best = (interval([f(points) for points in own]) for f in (last_gold, best_gold))
        reached = statistics.fmean([tokens_to(points, 0.8) for points in own])
        score = statistics.fmean([points[-1].score for points in own])
        cells = [name, str(len(own)), text(*gold), text(*best), f"{reached / 1000:.1f}" if reached < math.inf else "-"]
        lines.append("| " + " | ".join([*cells, f"{score:.2f}"]) + " |")
    if any(curve.algorithm in TRL for curve in curves):
        from benchmarks.learning_trl import NOT_THE_SAME

        lines += ["", "What is not the same in TRL's runs:", "", *(f"- {sentence}" for sentence in NOT_THE_SAME)]
        lines += ["- Scores of ours are those of the last step's rollouts."]
    return "\n".join([*lines, ""])


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
    for name in dict.fromkeys(curve.algorithm for curve in curves):
        own = [curve.points for curve in curves if curve.algorithm == name and curve.points]
        if not own:
            continue
        tokens = [statistics.fmean(p.sampled_tokens for p in column) / 1000 for column in zip(*own, strict=False)]
        gold = [statistics.fmean(p.gold for p in column) for column in zip(*own, strict=False)]
        axes.plot(tokens, gold, "--" if name in TRL else "-", label=name, marker=".")
    axes.set_xlabel("sampled tokens, thousands")
    axes.set_ylabel("held-out gold, mean over seeds")
    axes.legend(ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
