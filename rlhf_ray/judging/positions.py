"""Does a judge lean to the response that is shown first? Read off pairs that were asked in both orders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rlhf_ray.judging.verdicts import Opinion
from rlhf_ray.metrics.statistics import Interval, mean_interval, proportion_interval


@dataclass(frozen=True)
class PositionBias:
    """``first`` is the share of decided answers that prefer what was shown first: 0.5 without a bias.

    ``consistent`` is the share of pairs of which both orders say the same. ``lean`` is by how much the mean
    probability of what is shown first exceeds a half.
    """

    pairs: int
    unread: int  # pairs without a readable answer in both orders
    first: Interval
    consistent: Interval
    lean: Interval

    @classmethod
    def of(cls, opinions: Iterable[Opinion]) -> PositionBias:
        given = list(opinions)
        read = [opinion.by_order for opinion in given if opinion.by_order is not None]
        shown_first = [p for forward, backward in read for p in (forward, 1.0 - backward)]
        decided = [p for p in shown_first if p != 0.5]
        return cls(
            pairs=len(read),
            unread=len(given) - len(read),
            first=proportion_interval(sum(p > 0.5 for p in decided), len(decided)),
            consistent=proportion_interval(sum(opinion.is_consistent for opinion in given), len(read)),
            lean=mean_interval([fmean((forward, 1.0 - backward)) - 0.5 for forward, backward in read], method="normal"),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        return [
            f"pairs asked in both orders: {self.pairs} readable, {self.unread} not",
            f"both orders say the same: {_share(self.consistent)}",
            f"prefers what is shown first: {_share(self.first)} (0.5 without a bias)",
            f"probability of what is shown first, above a half: {_share(self.lean)}",
        ]


def _share(interval: Interval) -> str:
    return f"{interval.value:.3f} (95% interval {interval.low:.3f} to {interval.high:.3f})"
