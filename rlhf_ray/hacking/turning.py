"""Proxy and gold over the distance from the reference, and where gold turns.

The curves are those of Gao et al. 2023 (arXiv:2210.10760). The distance is d = sqrt(KL(policy || reference)), nats of a
response; gold is its gain over the reference's, R(0) = 0:

    best of n                R(d) = d (alpha - beta d)          gold turns at d = alpha / (2 beta)
    reinforcement learning   R(d) = d (alpha - beta log d)      gold turns at d = exp(alpha / beta - 1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from rlhf_ray.metrics.statistics import difference_interval

Doubles = npt.NDArray[np.float64]
Form: TypeAlias = Literal["best_of_n", "reinforcement"]

FORMS: tuple[Form, ...] = ("best_of_n", "reinforcement")
LEAST_POINTS = 4  # besides the start: two weights, and something left to be wrong about


@dataclass(frozen=True)
class Fit:
    """A curve of one of the two forms; ``error`` is the root of its mean squared error, in units of gold."""

    form: Form
    alpha: float
    beta: float
    error: float

    def gain(self, distance: float) -> float:
        """The gain over the reference's gold at ``distance`` = sqrt(KL)."""
        if distance <= 0:
            return 0.0
        slowed = distance if self.form == "best_of_n" else math.log(distance)
        return distance * (self.alpha - self.beta * slowed)

    @property
    def peak(self) -> float:
        """The distance at which gold turns: infinite where it only rises, 0 where it only falls."""
        if self.form == "best_of_n":
            if self.alpha <= 0:
                return 0.0
            return self.alpha / (2 * self.beta) if self.beta > 0 else math.inf
        if self.beta <= 0:
            return math.inf if self.beta < 0 or self.alpha > 0 else 0.0
        exponent = self.alpha / self.beta - 1
        return math.exp(exponent) if exponent < 700 else math.inf


@dataclass(frozen=True)
class Turn:
    """Where gold turns by the curve that fits best. ``kl`` is infinite where it only rises."""

    kl: float  # nats a response
    gold: float  # at the peak; NaN where there is none
    fit: Fit


def fit_curve(form: Form, distances: Doubles, gains: Doubles) -> Fit:
    """Fit alpha and beta by least squares; both curves are linear in them. ``distances`` [N] are above 0.

    Raises:
        ValueError: there are fewer than two points, or a distance is not above 0.
    """
    if len(distances) < 2 or not bool((distances > 0).all()):
        raise ValueError("a curve needs two or more points, all at a distance above 0")
    slowed = distances if form == "best_of_n" else np.log(distances)
    design = np.column_stack([distances, -distances * slowed])
    (alpha, beta), *_ = np.linalg.lstsq(design, gains, rcond=None)
    error = float(np.sqrt(np.mean((design @ np.array([alpha, beta]) - gains) ** 2)))
    return Fit(form, float(alpha), float(beta), error)


def turning_point(kls: Sequence[float], golds: Sequence[float]) -> Turn | None:
    """Return where gold turns over the KL; the first point is the reference's own gold, whatever its KL.

    None for fewer than four points after it at a KL above 0: two weights would then fit them too well to say anything.
    A peak beyond the points is a guess of the curve's: compare ``Turn.kl`` with the largest KL that was seen.

    Raises:
        ValueError: the two have different lengths.
    """
    if len(kls) != len(golds):
        raise ValueError(f"KL and gold must match, got {len(kls)} and {len(golds)}")
    seen = [(math.sqrt(kl), gold - golds[0]) for kl, gold in list(zip(kls, golds, strict=True))[1:] if kl > 0]
    if len(seen) < LEAST_POINTS:
        return None
    distances, gains = np.array(seen, dtype=np.float64).T
    fit = min((fit_curve(form, distances, gains) for form in FORMS), key=lambda each: each.error)
    peak = fit.peak
    return Turn(peak**2, golds[0] + fit.gain(peak) if math.isfinite(peak) else math.nan, fit)


def share_lost(start: float, best: float, now: float) -> float:
    """Return which share of the gain best - start is gone: 0 at the best, 1 at the start, above 1 below it.

    0 where nothing was ever gained.
    """
    return max(0.0, (best - now) / (best - start)) if best > start else 0.0


def certain_fall(best: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return by how much gold has fallen at least since its best: the lower end of a 95% interval, 0 where it is below.

    Both hold gold by prompt; prompts of both are paired (bootstrap). 0 for fewer than two.
    """
    both = sorted(best.keys() & now.keys())
    if len(both) < 2:
        return 0.0
    return max(0.0, difference_interval([best[name] for name in both], [now[name] for name in both]).low)
