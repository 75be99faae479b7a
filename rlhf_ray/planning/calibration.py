"""Seconds of a step from a few small steps that were measured: for machines whose rates no table states.

A probe runs steps of two or three sizes with the real parts. Each phase is fitted to the work that drives it, with
coefficients that cannot be negative, and evaluated at the size that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlhf_ray.errors import DataError
from rlhf_ray.planning.step_time import PhaseSeconds


@dataclass(frozen=True)
class ProbePoint:
    """One small step: its size, and the seconds of its phases. ``longest``: tokens of the longest response."""

    rollouts: int
    prompt_tokens: int  # in all
    response_tokens: int  # in all
    longest: int
    generate: float
    score: float
    update: float
    sync: float


@dataclass(frozen=True)
class Calibration:
    """What a probe measured of one machine and model. The server rates are of each server alone."""

    machine: str
    model: str
    points: tuple[ProbePoint, ...]
    engine_tokens_per_second: float
    trainer_tokens_per_second: float
    reference_tokens_per_second: float
    reward_tokens_per_second: float

    @property
    def mean_prompt(self) -> float:
        return sum(p.prompt_tokens for p in self.points) / sum(p.rollouts for p in self.points)

    @property
    def mean_response(self) -> float:
        return sum(p.response_tokens for p in self.points) / sum(p.rollouts for p in self.points)

    @property
    def longest(self) -> int:
        return max(p.longest for p in self.points)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Calibration:
        return cls(**{**raw, "points": tuple(ProbePoint(**point) for point in raw["points"])})


def non_negative_fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Least squares with coefficients of 0 or more, for two columns: try both, else the better of the two alone."""
    matrix, target = np.asarray(rows, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    both = np.linalg.lstsq(matrix, target, rcond=None)[0]
    if (both >= 0).all():
        return tuple(float(c) for c in both)
    best: tuple[float, tuple[float, ...]] | None = None
    for column in range(matrix.shape[1]):
        x = matrix[:, column]
        alone = max(0.0, float(x @ target / (x @ x))) if x.any() else 0.0
        error = float(((target - alone * x) ** 2).sum())
        found = tuple(alone if c == column else 0.0 for c in range(matrix.shape[1]))
        if best is None or error < best[0]:
            best = error, found
    assert best is not None
    return best[1]


def predict(calibration: Calibration, *, rollouts: int, prompt: float, response: float, longest: int) -> PhaseSeconds:
    """Phases of a step of ``rollouts``, with as many epochs and minibatches as the probe's.

    Generation: a part for each of the engine's steps and a part for each token. Score, update: a fixed part and one for
    each token. Sync: the mean. Raises DataError where fewer than two sizes were measured.
    """
    points = calibration.points
    if len({p.rollouts for p in points}) < 2:
        raise DataError("a calibration needs steps of two sizes or more; run the probe again")
    tokens = [p.prompt_tokens + p.response_tokens for p in points]
    asked = rollouts * (prompt + response)
    step, token = non_negative_fit([(p.longest, p.response_tokens) for p in points], [p.generate for p in points])
    fixed = [(1.0, float(n)) for n in tokens]
    score = non_negative_fit(fixed, [p.score for p in points])
    update = non_negative_fit(fixed, [p.update for p in points])
    return PhaseSeconds(
        generate=step * longest + token * rollouts * response,
        score=score[0] + score[1] * asked,
        old_logprobs=0.0,
        update=update[0] + update[1] * asked,
        sync=float(np.mean([p.sync for p in points])),
    )
