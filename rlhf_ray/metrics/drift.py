"""Does what an endpoint says change from day to day? Daily means with intervals, sudden and slow changes told apart.

The first days are the baseline. A day is *far off* where its mean leaves the baseline by more than chance explains, and
the measure *drifts* where small deviations of one sign add up (CUSUM, Page 1954).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import Literal

from rlhf_ray.metrics.statistics import Interval, mean_interval

FALSE_ALARMS = 0.01  # how often a log without any change may raise an alarm of a day far off, over all its days
ALLOWANCE = 0.5  # deviations a day that CUSUM forgives: it is tuned to shifts of twice that (Montgomery, 2013, ch. 9)
DECISION = 5.0  # deviations, summed, at which CUSUM raises its alarm: about once in 465 quiet days


@dataclass(frozen=True)
class Day:
    """One day's values of one measure. ``z`` is its distance from the baseline in deviations of a day's mean."""

    day: str  # ISO date, UTC
    interval: Interval
    z: float = math.nan
    is_baseline: bool = False


@dataclass(frozen=True)
class Alarm:
    """``sudden``: a day far off. ``slow``: deviations that add up; ``day`` is when they had."""

    measure: str
    day: str
    kind: Literal["sudden", "slow"]
    value: float
    baseline: float
    z: float

    def __str__(self) -> str:
        how = f"{self.z:+.1f} deviations" if self.kind == "sudden" else "small deviations have added up"
        return f"{self.day}: {self.measure} {self.value:.3g}, against {self.baseline:.3g} at first ({self.kind}: {how})"


@dataclass(frozen=True)
class Drift:
    """One measure over days, in order; ``baseline`` is NaN where there are too few days to compare."""

    measure: str
    days: tuple[Day, ...]
    baseline: float
    alarms: tuple[Alarm, ...]


def drift(measure: str, values: Mapping[str, Sequence[float]], *, baseline_days: int) -> Drift:
    """Compare each day's values (ISO date -> values) with those of the first ``baseline_days`` days.

    The deviation of a day's mean has two parts, as on Laney's charts (2002): that of its values around it, and that of
    the baseline's days among each other beyond it; the uncertainty of what it is compared with comes on top. The
    threshold of a day far off is that of a normal deviate with ``FALSE_ALARMS`` over all compared days (Bonferroni).
    CUSUM sums deviations from all days before, not from the baseline, whose own error would add up (Hawkins 1987).

    Raises:
        ValueError: ``baseline_days`` is below 1.
    """
    if baseline_days < 1:
        raise ValueError(f"baseline_days ({baseline_days}) must be 1 or more")
    names = [day for day in sorted(values) if values[day]]
    intervals = {day: mean_interval(list(values[day]), method="normal") for day in names}
    first = names[:baseline_days]
    spread = _Spread.of([values[day] for day in first])
    if len(names) == len(first) or spread is None:
        days = tuple(Day(day, intervals[day], is_baseline=day in first) for day in names)
        return Drift(measure, days, math.nan, ())
    rows = [values[day] for day in names]
    baseline = rows[: len(first)]
    days = tuple(Day(day, intervals[day], spread.z(values[day], baseline), is_baseline=day in first) for day in names)
    steps = [spread.z(rows[place], rows[:place]) for place in range(len(first), len(rows))]
    value = fmean(each for row in baseline for each in row)
    return Drift(measure, days, value, _alarms(measure, days[len(first) :], steps, value))


@dataclass(frozen=True)
class _Spread:
    """Variance of single values, and of days' means beyond what follows from it."""

    within: float
    between: float

    @classmethod
    def of(cls, days: Sequence[Sequence[float]]) -> _Spread | None:
        """That of some days; None where they hold fewer than two values."""
        pooled = [value for day in days for value in day]
        if len(pooled) < 2:
            return None
        # What never varied may still: of n times yes, the next may be a no with a chance of 1 / (n + 2).
        share = 1.0 / (len(pooled) + 2)
        within = max(variance(pooled), share * (1.0 - share) * max(1.0, abs(pooled[0])) ** 2)
        if len(days) < 2:
            return cls(within, 0.0)
        return cls(within, max(0.0, variance(map(fmean, days)) - fmean(within / len(day) for day in days)))

    def z(self, day: Sequence[float], others: Sequence[Sequence[float]]) -> float:
        """How far a day's mean is from that of ``others``, in deviations of the difference."""
        pooled = [value for other in others for value in other]
        of_others = self.within / len(pooled) + self.between / len(others)
        return (fmean(day) - fmean(pooled)) / math.sqrt(self.within / len(day) + self.between + of_others)


def _alarms(measure: str, days: Sequence[Day], steps: Sequence[float], baseline: float) -> tuple[Alarm, ...]:
    threshold = NormalDist().inv_cdf(1.0 - FALSE_ALARMS / (2 * len(days)))
    alarms: list[Alarm] = []
    above = below = 0.0
    for day, step in zip(days, steps, strict=True):
        if abs(day.z) > threshold:
            alarms.append(Alarm(measure, day.day, "sudden", day.interval.value, baseline, day.z))
        above, below = max(0.0, above + step - ALLOWANCE), max(0.0, below - step - ALLOWANCE)
        if max(above, below) > DECISION:
            alarms.append(Alarm(measure, day.day, "slow", day.interval.value, baseline, day.z))
            above = below = 0.0
    return tuple(alarms)
