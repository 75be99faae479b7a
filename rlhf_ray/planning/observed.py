"""Prediction beside what a run has measured: the mean seconds of each phase in its metric log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.step_time import PhaseSeconds

PHASES = ("generate", "score", "update", "sync")
METRICS = "metrics.jsonl"


def observed_seconds(run: Path) -> dict[str, float]:
    """Median seconds by phase, and of the whole ``step``, over a run's PPO steps; with its mean response length.

    ``run`` is a run's output_dir or its ppo directory. The median leaves out steps that waited for something else.
    Raises ConfigError where there is no step.
    """
    files = [file for file in (run / "ppo" / METRICS, run / METRICS) if file.is_file()]
    rows = [json.loads(line) for line in files[0].read_text().splitlines()] if files else []
    steps = [row for row in rows if "time/step" in row]
    if not steps:
        raise ConfigError("--observed", str(run), "has no metric log with a PPO step", "give a run's output_dir")
    found = {name: median(row.get(f"time/{name}", 0.0) for row in steps) for name in (*PHASES, "step")}
    return found | {"response_tokens": median(row["ppo/response_length"] for row in steps), "steps": float(len(steps))}


def predicted_seconds(seconds: PhaseSeconds) -> dict[str, float]:
    """The same phases of a prediction: a run's update includes its old log-probabilities."""
    return {
        "generate": seconds.generate,
        "score": seconds.score,
        "update": seconds.old_logprobs + seconds.update,
        "sync": seconds.sync,
        "step": seconds.in_turn,
    }


def compared(predicted: Mapping[str, float], observed: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Both by phase, and predicted over observed where that is not 0."""
    return {
        name: {"predicted": seconds, "observed": seen, "ratio": seconds / seen if seen else 0.0}
        for name, seconds in predicted.items()
        for seen in [observed[name]]
    }
