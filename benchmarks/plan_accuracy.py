"""Predict a PPO step from small ones, then measure it: how far off is `rlhf-ray plan --probe`?

    python benchmarks/plan_accuracy.py configs/quickstart.yaml configs/movie_sentiment.yaml configs/hh_rlhf.yaml

Probe and steps run right after each other in the same processes, so that what else the machine does slows both alike.
Models of a preset's shape with random weights stand in where its SFT and reward model are not finished.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record_runs import closing, opening, record_of, write_record
from launch.plan import predicted_step
from launch.probe import measure, ppo_actors
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import RunConfig
from rlhf_ray.pipeline.artefacts import ArtefactStore
from rlhf_ray.planning.observed import PHASES, predicted_seconds

LIMIT = 0.25  # the largest error of a step's time that is asked of the plan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=3, help="PPO steps that are measured, after the probe")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs' directories are")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    parser.add_argument("--override", action="append", default=[], metavar="KEY.PATH=VALUE")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.configs:
        overrides = [f"output_dir={arguments.runs / path.stem}", *arguments.override]
        rows.append(asyncio.run(measured(path.stem, load_config(path, overrides), arguments.steps)))
        write(rows, arguments)
    return 0 if all(abs(row["error"]) <= LIMIT for row in rows) else 1


async def measured(name: str, config: RunConfig, steps: int) -> dict[str, Any]:
    """Prediction and measurement of one preset, seconds by phase. The median of ``steps`` counts."""
    store = ArtefactStore(Path(config.output_dir).resolve())
    async with ppo_actors(config, store, "plan_accuracy") as actors:
        calibration = await measure(actors)
        taken = [await actors.driver.step() for _ in range(steps)]
    seen = {phase: median(step[f"time/{phase}"] for step in taken) for phase in (*PHASES, "step")}
    lengths = median(step["ppo/response_length"] for step in taken)
    predicted = predicted_seconds(predicted_step(config, calibration))
    return {
        "name": name,
        "rollouts": config.ppo.rollouts_per_step,
        "response_tokens": {"probe": calibration.mean_response, "steps": lengths},
        "predicted": predicted,
        "measured": seen,
        "each_step": [step["time/step"] for step in taken],
        "error": predicted["step"] / seen["step"] - 1,
        "calibration": calibration.as_dict() | {"machine": ""},
    }


def write(rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """Record what is there so far."""
    words = [str(path) for path in arguments.configs] + [f"--steps={arguments.steps}"]
    command = shlex.join(["python", "benchmarks/plan_accuracy.py", *words])
    record = record_of("plan_accuracy", command, arguments.note, presets=list(rows))
    write_record(record, table(record))
    print(table(record), flush=True)


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a row a preset, predicted / measured seconds by phase."""
    head = ("preset", "rollouts", *PHASES, "step", "error")
    lines = opening(record, "Plan and measurement", "Predicted / measured seconds of a PPO step, by phase.")
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in record["presets"]:
        cells = [f"{row['predicted'][name]:.2f} / {row['measured'][name]:.2f}" for name in (*PHASES, "step")]
        lines.append(f"| {row['name']} | {row['rollouts']} | {' | '.join(cells)} | {row['error']:+.0%} |")
    return "\n".join([*lines, *closing(record)])


if __name__ == "__main__":
    sys.exit(main())
