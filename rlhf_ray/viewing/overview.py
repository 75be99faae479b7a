"""A run at a glance: where it is, what stands out, its principal curves, what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.metrics.report_tables import format_value, measure
from rlhf_ray.viewing.curves import PRINCIPAL, Curve, curves, sources, stage_names
from rlhf_ray.viewing.run import Alarm, Run, StageRecord, StatusNow


@dataclass(frozen=True)
class StageSeen:
    """``record`` is None for a stage that is not finished."""

    place: str
    record: StageRecord | None


@dataclass(frozen=True)
class OutcomeRow:
    """One measure of held-out answers: its value with the interval's ends for every run and model, as text."""

    label: str
    unit: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Outcome:
    columns: tuple[tuple[str, str], ...]  # (run, model)
    rows: tuple[OutcomeRow, ...]


@dataclass(frozen=True)
class Overview:
    status: StatusNow
    stages: tuple[StageSeen, ...]
    outside: tuple[Curve, ...]
    principal: tuple[Curve, ...]
    alarms: tuple[Alarm, ...]
    num_alarms: int
    outcome: Outcome


def overview(run: Run, runs: Sequence[Run]) -> Overview:
    """Of ``run``; curves and outcomes beside those of the other ``runs``."""
    records = {record.place: record for record in run.artefacts()}
    outside: list[Curve] = []
    principal: list[Curve] = []
    for stage in reversed(stage_names([run])):
        outside += [curve for curve in curves(sources([run], stage)) if curve.is_outside_now]
        principal += curves(sources(runs, stage), names=PRINCIPAL)
    alarms = run.alarms()
    return Overview(
        run.status(),
        tuple(StageSeen(place, records.get(place)) for place in run.stages()),
        tuple(outside),
        tuple(principal),
        tuple(alarms[:5]),
        len(alarms),
        outcome(runs),
    )


def outcome(runs: Sequence[Run]) -> Outcome:
    """What finished runs say of their models in ``summary.json``."""
    summaries = [(run.name, run.summary()) for run in runs]
    columns = [(name, model) for name, summary in summaries for model in _mapping(_mapping(summary).get("score"))] or []
    names = list(dict.fromkeys(name for _, summary in summaries for name in summary if _is_measure(summary[name])))
    rows = []
    for name in names:
        values = [_mapping(_mapping(dict(summaries)[run].get(name)).get(model)) for run, model in columns]
        if any(values):
            shown = measure(name)
            rows.append(OutcomeRow(shown.label, shown.unit, tuple(_cell(name, value) for value in values)))
    return Outcome(tuple(columns), tuple(rows))


def _is_measure(value: Any) -> bool:
    return isinstance(value, Mapping) and any("mean" in _mapping(inner) for inner in value.values())


def _cell(name: str, value: Mapping[str, Any]) -> tuple[str, str]:
    try:
        mean, low, high = (float(value[end]) for end in ("mean", "low", "high"))
    except (KeyError, TypeError, ValueError):
        return "n/a", ""
    interval = "" if math.isnan(low) else f"{format_value(name, low)} to {format_value(name, high)}"
    return format_value(name, mean), interval


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
