"""How far people agree with a judge, estimated from a sample for all that it has judged.

Items were chosen with different chances, so each counts by the inverse of its own: the estimate is that of all items,
not of the doubtful ones alone (Hajek's ratio estimator). Its interval is Wilson's, with the number of items that a
plain random sample of the same variance would have (Korn and Graubard 1998).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlhf_ray.metrics.statistics import Z95, Interval

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of confidence, for the table


@dataclass(frozen=True)
class Compared:
    """One pair that a person and the judge have both judged."""

    item_id: str
    inclusion: float  # the item's chance to be in the sample
    judge: int  # -1 the first is better, 1 the second, 0 a tie
    person: int
    confidence: float  # of the judge: max(p, 1 - p)

    @property
    def agrees(self) -> float:
        """1, 0, or a half where one of the two says tie and the other does not."""
        return 1.0 - abs(self.judge - self.person) / 2

    @property
    def decided(self) -> bool:
        return self.judge != 0 and self.person != 0


@dataclass(frozen=True)
class Level:
    """Agreement where the judge's confidence lies in [low, next level)."""

    low: float
    confidence: float  # mean
    agreement: Interval


@dataclass(frozen=True)
class Agreement:
    """Over pairs that both decide, and over all with ties as halves.

    Where a judge is calibrated, people agree with it in ``levels`` as often as it is sure.
    """

    decided: Interval
    with_ties: Interval
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, compared: Sequence[Compared]) -> Agreement:
        decided = [each for each in compared if each.decided]
        levels = []
        for low, high in zip(LEVELS, (*LEVELS[1:], math.inf), strict=True):
            own = [each for each in decided if low <= each.confidence < high]
            if own:
                levels.append(Level(low, fmean(each.confidence for each in own), weighted_share(own)))
        return cls(weighted_share(decided), weighted_share(compared), tuple(levels))

    def lines(self) -> list[str]:
        lines = [
            f"people agree with the judge on {_text(self.decided)} of pairs that both decide",
            f"  with ties counted as halves {_text(self.with_ties)}",
        ]
        return lines + [
            f"  where it is sure to {level.low:g} or more (mean {level.confidence:.2f}): {_text(level.agreement)}"
            for level in self.levels
        ]


def weighted_share(compared: Sequence[Compared]) -> Interval:
    """The share of pairs on which people agree, of all pairs that were judged; ``count`` is how many were compared.

    Pairs of one item count together for the variance: they were chosen together.
    """
    if not compared:
        return Interval(math.nan, math.nan, math.nan, 0)
    agreeing: dict[str, float] = {}
    weights: dict[str, float] = {}
    for each in compared:
        weights[each.item_id] = weights.get(each.item_id, 0.0) + 1.0 / each.inclusion
        agreeing[each.item_id] = agreeing.get(each.item_id, 0.0) + each.agrees / each.inclusion
    total = math.fsum(weights.values())
    share = math.fsum(agreeing.values()) / total
    size = effective_size(share, agreeing, weights)
    low, high = wilson(share, size)
    return Interval(share, low, high, len(compared))


def effective_size(share: float, agreeing: dict[str, float], weights: dict[str, float]) -> float:
    """share (1 - share) / variance, the variance linearised over items; by Kish's rule where all say the same."""
    total = math.fsum(weights.values())
    kish = total**2 / math.fsum(weight**2 for weight in weights.values())
    if len(weights) < 2 or share * (1.0 - share) < 1e-12:
        return kish
    residuals = [agreeing[name] - share * weights[name] for name in weights]
    variance = len(weights) / (len(weights) - 1) * math.fsum(r**2 for r in residuals) / total**2
    return share * (1.0 - share) / variance if variance > 0 else kish


def wilson(share: float, size: float) -> tuple[float, float]:
    """Wilson's score interval for a share of ``size`` independent items, which need not be a whole number."""
    square = Z95**2
    centre = (share + square / (2 * size)) / (1 + square / size)
    half = Z95 / (1 + square / size) * math.sqrt(share * (1 - share) / size + square / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _text(interval: Interval) -> str:
    return f"{interval.value:.3f} (95% interval {interval.low:.3f} to {interval.high:.3f}; {interval.count} pairs)"
