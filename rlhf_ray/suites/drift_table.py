"""Days of an endpoint as a table: what changed, and when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_ray.metrics.drift import Day, Drift


def drift_table(found: Sequence[Drift], counts: Mapping[str, int]) -> Table:
    """A line a day; days of the baseline are dim, those that raise an alarm are red. ``counts``: answers by day."""
    table = Table(title="By day", title_justify="left", caption_justify="left")
    table.caption = "Means with 95% intervals. Dim: the days that the others are compared with. Red: an alarm."
    for column in ("day", "answers", *(_label(each.measure) for each in found)):
        table.add_column(column, justify="left" if column == "day" else "right")
    days = [{day.day: day for day in each.days} for each in found]
    alarmed = {(alarm.measure, alarm.day) for each in found for alarm in each.alarms}
    for name in sorted(counts):
        cells = [_cell(own.get(name), (each.measure, name) in alarmed) for each, own in zip(found, days, strict=True)]
        table.add_row(name, str(counts[name]), *cells)
    return table


def drift_rows(found: Sequence[Drift]) -> list[dict[str, Any]]:
    """One object a measure and day, for a file; what is not a number is None."""
    alarmed = {(alarm.measure, alarm.day, alarm.kind) for each in found for alarm in each.alarms}
    return [
        {
            "measure": each.measure,
            "day": day.day,
            "value": day.interval.value,
            "low": _plain(day.interval.low),
            "high": _plain(day.interval.high),
            "count": day.interval.count,
            "z": _plain(day.z),
            "baseline": day.is_baseline,
            "alarms": [kind for kind in ("sudden", "slow") if (each.measure, day.day, kind) in alarmed],
        }
        for each in found
        for day in each.days
    ]


def _label(measure: str) -> str:
    return measure.removeprefix("drift/")


def _cell(day: Day | None, is_alarm: bool) -> Text:
    if day is None:
        return Text("n/a", "dim")
    value, low, high = day.interval.value, day.interval.low, day.interval.high
    ends = "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]"
    return Text(f"{value:.3g}{ends}", "red" if is_alarm else "dim" if day.is_baseline else "")


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
