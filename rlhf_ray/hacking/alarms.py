"""When an alarm is raised: a state machine for every rule and metric, which knows nothing but the values it is told.

    threshold   the value, or its distance from the first one, is beyond the limit
    trend       the last observations rise (fall) by Mann-Kendall's test (trends.py)
    change      CUSUM (Page 1954): S <- max(0, S + z - 1/2), z the value in deviations of the warm-up; S above the limit

A rule fires once it has held for ``patience`` observations in a row, and not again before it has cleared, or, with
``again_after``, so many observations later. A value that is no finite number is not an observation. The state is plain
numbers: a run that is taken up raises what it would have raised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any, TypeAlias

from rlhf_ray.config.alarms import Action, AlarmRule, matches
from rlhf_ray.hacking.trends import falling_chance, rising_chance, slope

SLACK = 0.5  # deviations that CUSUM forgives: it is tuned for a shift of one (Montgomery 2013, section 9.1)
LEAST_DEVIATION = 1e-3  # of the mean: a warm-up that hardly moved does not make every later value a change
State: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What a machine has seen of its metric: observations, and for how many in a row the rule has held."""

    count: int = 0
    start: float = 0.0
    recent: tuple[float, ...] = ()  # a trend's window, or a change's warm-up
    total: float = 0.0  # of CUSUM
    held: int = 0
    since: int | None = None  # observations since it fired; None: it has not since it last cleared


@dataclass(frozen=True)
class Fired:
    """An alarm, before anybody has looked for the samples that show it."""

    name: str
    metric: str
    value: float
    message: str
    action: Action


def observed(rule: AlarmRule, seen: Seen, value: float) -> tuple[Seen, str]:
    """The machine after one more value, and why it fires now; empty where it does not."""
    if not math.isfinite(value):
        return seen, ""
    seen = replace(seen, count=seen.count + 1, start=value if seen.count == 0 else seen.start)
    seen, reason = _JUDGES[rule.kind](rule, seen, value)
    if not reason or seen.count <= rule.warmup:
        return replace(seen, held=0, since=None), ""
    seen = replace(seen, held=seen.held + 1, since=None if seen.since is None else seen.since + 1)
    first = seen.since is None and seen.held >= rule.patience
    again = seen.since is not None and 0 < rule.again_after <= seen.since
    if not (first or again):
        return seen, ""
    times = f", {seen.held} times in a row" if seen.held > 1 else ""
    return replace(seen, since=0), f"{reason}{times}"


def _threshold(rule: AlarmRule, seen: Seen, value: float) -> tuple[Seen, str]:
    if rule.against == "start_ratio" and seen.start == 0:
        return seen, ""  # nothing is a multiple of nothing
    judged, what = {
        "value": (value, "is {:.3g}"),
        "start_difference": (value - seen.start, "has changed by {:+.3g}, from {start:.3g} to {now:.3g}"),
        "start_ratio": (value / seen.start if seen.start else 1.0, "is {:.3g} times its first value ({start:.3g})"),
    }[rule.against]
    if not _beyond(rule, judged):
        return seen, ""
    said = what.format(judged, start=seen.start, now=value)
    return seen, f"{said}, {rule.side} the limit of {rule.limit:g}"


def _trend(rule: AlarmRule, seen: Seen, value: float) -> tuple[Seen, str]:
    window = (*seen.recent, value)[-rule.window :]
    seen = replace(seen, recent=window)
    chance = rising_chance(window) if rule.side == "above" else falling_chance(window)
    if len(window) < rule.window or chance >= rule.limit:
        return seen, ""
    verb = "rises" if rule.side == "above" else "falls"
    return seen, (
        f"{verb} by {abs(slope(window)):.3g} an observation over the last {rule.window}, from {window[0]:.3g} to "
        f"{value:.3g} (the chance of that without a trend: {chance:.2g})"
    )


def _change(rule: AlarmRule, seen: Seen, value: float) -> tuple[Seen, str]:
    if seen.count <= rule.warmup:
        return replace(seen, recent=(*seen.recent, value)), ""
    mean = fmean(seen.recent)
    deviation = max(stdev(seen.recent), LEAST_DEVIATION * abs(mean), 1e-9)
    away = (value - mean) / deviation if rule.side == "above" else (mean - value) / deviation
    total = max(0.0, seen.total + away - SLACK)
    if total <= rule.limit:
        return replace(seen, total=total), ""
    return replace(seen, total=total), (
        f"has left {mean:.3g} ± {deviation:.2g}, where it began: it is {value:.3g}, and deviations {rule.side} have "
        f"summed up to {total:.3g} (the limit is {rule.limit:g})"
    )


_JUDGES = {"threshold": _threshold, "trend": _trend, "change": _change}


def _beyond(rule: AlarmRule, judged: float) -> bool:
    return judged > rule.limit if rule.side == "above" else judged < rule.limit


class AlarmBoard:
    """Every rule, with one machine for each metric that it has been told of."""

    def __init__(self, rules: Mapping[str, AlarmRule]) -> None:
        self._rules = {name: rule for name, rule in rules.items() if rule.enabled}
        self._seen: dict[tuple[str, str], Seen] = {}

    def observe(self, metrics: Mapping[str, float]) -> list[Fired]:
        """Tell every machine of a step's metrics; what they raise, in the order of the rules."""
        fired = []
        for name, rule in self._rules.items():
            for metric in sorted(metrics):
                if matches(rule, metric):
                    before = self._seen.get((name, metric), Seen())
                    self._seen[name, metric], reason = observed(rule, before, metrics[metric])
                    if reason:
                        fired.append(Fired(name, metric, metrics[metric], f"{metric} {reason}", rule.action))
        return fired

    def state(self) -> State:
        """Plain data, by rule and metric."""
        state: State = {}
        for (name, metric), seen in self._seen.items():
            state.setdefault(name, {})[metric] = {**asdict(seen), "recent": list(seen.recent)}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. A rule that is new since then begins anew; one that is gone is forgotten."""
        self._seen = {
            (name, metric): Seen(**{**seen, "recent": tuple(seen["recent"])})
            for name, metrics in state.items()
            for metric, seen in metrics.items()
            if name in self._rules
        }
