"""What runs have logged, as curves: definition, unit and healthy range of each, and where a run left the range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rlhf_ray.metrics.health import HEALTH, Health
from rlhf_ray.metrics.registry import UnknownMetricError, describe
from rlhf_ray.metrics.sinks import METRICS_FILE, MetricRow, format_number
from rlhf_ray.viewing.drawing import Drawing, Point, draw
from rlhf_ray.viewing.run import NUM_COLOURS, Run

# What a stage's first page shows; the rest is a page away.
PRINCIPAL = (
    "ppo/score_mean",
    "gold/heldout_mean",
    "ppo/kl_per_response",
    "ppo/response_length",
    "ppo/entropy",
    "ppo/explained_variance",
    "dpo/loss",
    "dpo/accuracy",
    "reward_model/heldout_accuracy",
    "reward_model/loss",
    "sft/loss",
    "sft/heldout_loss",
)
UNKNOWN = "This version has no definition of it."


@dataclass(frozen=True)
class Line:
    """One run's values of a metric. ``label`` is the run's name, and the round's where there are rounds."""

    label: str
    colour: int
    points: tuple[Point, ...]

    @property
    def last(self) -> str:
        return format_number(self.points[-1][1])


@dataclass(frozen=True)
class Outside:
    """Where a line was outside the healthy range."""

    label: str
    colour: int
    count: int
    of: int
    first: float
    is_now: bool


@dataclass(frozen=True)
class Curve:
    name: str
    unit: str
    definition: str
    source: str
    health: Health | None
    lines: tuple[Line, ...]
    outside: tuple[Outside, ...]

    @cached_property
    def drawing(self) -> Drawing | None:
        """The picture; None where no value is a number."""
        low, high = (self.health.low, self.health.high) if self.health else (-math.inf, math.inf)
        return draw([(line.colour, line.points) for line in self.lines], low, high)

    @property
    def key(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)

    @property
    def is_outside_now(self) -> bool:
        return any(each.is_now for each in self.outside)


@dataclass(frozen=True)
class Source:
    """One log that curves are drawn from."""

    label: str
    colour: int
    rows: tuple[MetricRow, ...]


def stage_names(runs: Sequence[Run]) -> list[str]:
    """The stages that any run has logged something in, without the round."""
    places = [place for run in runs for place in run.stages_with(METRICS_FILE)]
    return list(dict.fromkeys(place.rpartition("/")[2] for place in places))


def sources(runs: Sequence[Run], stage: str) -> list[Source]:
    """The logs of a stage: one a run, in the run's colour, or one a round of each run, in colours of their own."""
    found: list[Source] = []
    for run in runs:
        places = [place for place in run.stages_with(METRICS_FILE) if place.rpartition("/")[2] == stage]
        for place in places:
            rounds = place.rpartition("/")[0].replace("_", " ")
            label = " ".join(part for part in (run.name if len(runs) > 1 or not rounds else "", rounds) if part)
            found.append(Source(label, run.colour, run.metrics(place)))
    if len(found) > len(runs) and len(found) <= NUM_COLOURS:
        return [replace(source, colour=number) for number, source in enumerate(found)]
    return found


def curves(
    found: Sequence[Source],
    *,
    names: Sequence[str] = (),
    pattern: str = "",
    only_outside: bool = False,
    by_time: bool = False,
) -> list[Curve]:
    """All curves of the logs, or those of ``names``, or those with ``pattern`` in their name or definition."""
    logged = list(dict.fromkeys(name for source in found for row in source.rows for name in row.metrics))
    wanted = [name for name in names if name in logged] if names else sorted(logged, key=_order)
    made = (curve(name, found, by_time=by_time) for name in wanted if _matches(name, pattern))
    return [each for each in made if each.outside or not only_outside]


def curve(name: str, found: Sequence[Source], *, by_time: bool = False) -> Curve:
    """One metric of all logs that have it; x is the step, or with ``by_time`` hours since the log's first line."""
    lines = [Line(source.label, source.colour, _points(name, source.rows, by_time)) for source in found]
    lines = [line for line in lines if line.points]
    health = HEALTH.get(name)
    unit, definition, origin = _described(name)
    outside = tuple(each for line in lines if (each := _outside(line, health)))
    return Curve(name, unit, definition, origin, health, tuple(lines), outside)


def _described(name: str) -> tuple[str, str, str]:
    try:
        known = describe(name)
    except UnknownMetricError:
        return "", UNKNOWN, ""
    return known.unit, known.definition, known.source


def _points(name: str, rows: Sequence[MetricRow], by_time: bool) -> tuple[Point, ...]:
    """A step that was done again has its last value."""
    if by_time:
        start = rows[0].logged_at if rows else 0.0
        return tuple(((row.logged_at - start) / 3600, row.metrics[name]) for row in rows if name in row.metrics)
    values = {row.step: row.metrics[name] for row in rows if name in row.metrics}
    return tuple((float(step), values[step]) for step in sorted(values))


def _outside(line: Line, health: Health | None) -> Outside | None:
    """Without a range only what is no number is outside."""
    held = [health.holds(y) if health else math.isfinite(y) for _, y in line.points]
    if all(held):
        return None
    first = line.points[held.index(False)][0]
    return Outside(line.label, line.colour, held.count(False), len(held), first, not held[-1])


def _matches(name: str, pattern: str) -> bool:
    words = pattern.lower().split()
    text = f"{name} {_described(name)[1]}".lower()
    return all(word in text for word in words)


def _order(name: str) -> tuple[int, str]:
    return (PRINCIPAL.index(name) if name in PRINCIPAL else len(PRINCIPAL), name)
