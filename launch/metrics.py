"""``rlhf-ray metrics``: what every number of a log means, where it is healthy, and what to do when it is not."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from launch.command import guard
from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics.definition import MetricDefinition
from rlhf_ray.metrics.health import HEALTH
from rlhf_ray.metrics.registry import DEFINITIONS, describe
from rlhf_ray.metrics.sinks import METRICS_FILE, format_number, read_metrics


@dataclass(frozen=True)
class Seen:
    """The newest value of a metric in a run."""

    value: float
    step: int


def metrics(
    pattern: Annotated[str, typer.Argument(help="A name or a pattern, for example 'ppo/*kl*'.")] = "*",
    run: Annotated[
        Path | None, typer.Option(help="A run's directory: show its newest values, those out of range first.")
    ] = None,
) -> None:
    """Print every metric: unit, definition, source, healthy range, and what to do outside it."""

    def show() -> None:
        console = Console()
        if run is None:
            console.print("\n\n".join(described(definition) for definition in matching(pattern)), markup=False)
        else:
            values = {name: seen for name, seen in newest(run).items() if matches(name, pattern)}
            console.print(values_table(values))
            console.print("\n".join(advice(values)), markup=False)

    guard(show)


def matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)


def matching(pattern: str) -> list[MetricDefinition]:
    """Raises ConfigError where no metric has such a name."""
    found = [definition for definition in DEFINITIONS if matches(definition.name, pattern)]
    if not found:
        groups = ", ".join(sorted({f"'{definition.name.split('/')[0]}/*'" for definition in DEFINITIONS}))
        raise ConfigError("PATTERN", pattern, "matches no metric", f"try one of {groups}")
    return found


def newest(run: Path) -> dict[str, Seen]:
    """The last value of every metric that any stage of a run has logged, rounds included."""
    logs = sorted(run.rglob(METRICS_FILE), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise ConfigError("--run", str(run), f"holds no {METRICS_FILE}", "give a run's output_dir")
    return {
        name: Seen(value, row.step) for log in logs for row in read_metrics(log) for name, value in row.metrics.items()
    }


def is_unhealthy(name: str, value: float) -> bool:
    return name in HEALTH and not HEALTH[name].holds(value)


def described(definition: MetricDefinition) -> str:
    """Some lines on one metric."""
    unit, health = f" ({definition.unit})" if definition.unit else "", HEALTH.get(definition.name)
    lines = [f"{definition.name}{unit}, from the {definition.source}", f"    {definition.definition}"]
    return "\n".join([*lines, f"    Healthy: {health}. Outside it: {health.remedy}"] if health else lines)


def values_table(values: Mapping[str, Seen]) -> Table:
    table = Table(Column("metric", no_wrap=True), "value", "unit", "step", Column("healthy", no_wrap=True))
    for name in sorted(values, key=lambda name: (not is_unhealthy(name, values[name].value), name)):
        seen, style = values[name], "red" if is_unhealthy(name, values[name].value) else ""
        healthy = str(HEALTH.get(name, ""))
        table.add_row(name, format_number(seen.value), describe(name).unit, str(seen.step), healthy, style=style)
    return table


def advice(values: Mapping[str, Seen]) -> list[str]:
    """A line for every metric that is out of its range."""
    unhealthy = {name: seen for name, seen in sorted(values.items()) if is_unhealthy(name, seen.value)}
    return [f"{name} is {format_number(seen.value)}: {HEALTH[name].remedy}" for name, seen in unhealthy.items()]
