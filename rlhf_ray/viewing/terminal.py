"""What a run's logs say, for a terminal: how far it is, what its steps are made of, its newest alarm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_ray.metrics.progress import format_duration, format_rate
from rlhf_ray.metrics.sinks import METRICS_FILE, MetricRow
from rlhf_ray.viewing.curves import PRINCIPAL
from rlhf_ray.viewing.run import Alarm, Run

RECENT = 20  # steps that rates and shares are of
PHASES = ("generate", "score", "update", "sync", "evaluate", "save")
BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40
MESSAGE_CHARACTERS = 200


def seen(run: Run) -> list[RenderableType]:
    """The stage at work, its principal curves, its phases and the newest alarm; as much of it as there is."""
    found: list[RenderableType] = []
    if (place := newest_place(run)) and (rows := run.metrics(place)):
        found += [progress_line(place, rows, planned_steps(run, place)), curves_table(rows)]
        if phases := phases_line(rows):
            found.append(phases)
    if alarms := run.alarms():
        found.append(alarm_line(alarms[0], len(alarms)))
    return found


def newest_place(run: Run) -> str:
    """The stage that has logged last; empty before the first one has."""
    places = run.stages_with(METRICS_FILE)
    return max(places, key=lambda place: (run.root / place / METRICS_FILE).stat().st_mtime, default="")


def planned_steps(run: Run, place: str) -> int:
    """Of PPO and online DPO, whose settings say it; 0 where the number follows from the data."""
    config: Mapping[str, Any] = run.config()
    try:
        asked = {"ppo": config["ppo"]["num_steps"], "dpo": config["dpo"]["online"]["num_steps"]}
        return int(asked.get(place.rpartition("/")[2], 0) or 0)
    except (KeyError, TypeError, ValueError):
        return 0


def progress_line(place: str, rows: Sequence[MetricRow], planned: int) -> Text:
    """``ppo: step 12/42, 3.4 s per step, 1:42 left``."""
    newest, recent = rows[-1], rows[-RECENT - 1 :]
    steps, seconds = newest.step - recent[0].step, newest.logged_at - recent[0].logged_at
    parts = [f"{place}: step {newest.step}" + (f"/{planned}" if planned else "")]
    if rate := format_rate(steps, seconds, "steps"):
        parts.append(rate)
        if planned > newest.step:
            parts.append(f"{format_duration(seconds / steps * (planned - newest.step))} left")
    return Text(", ".join(parts), style="bold")


def curves_table(rows: Sequence[MetricRow]) -> Table:
    """The principal metrics that the stage has logged: the first value, the newest, and the way between."""
    table = Table("metric", "first", "now", "")
    for name in PRINCIPAL:
        values = [row.metrics[name] for row in rows if name in row.metrics]
        if values:
            table.add_row(name, f"{values[0]:.4g}", f"{values[-1]:.4g}", sparkline(values))
    return table


def sparkline(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """One bar a value, or a mean of neighbours where there are more than ``width``; a gap where nothing is finite."""
    size = max(1, -(-len(values) // width))
    parts = [list(filter(math.isfinite, values[i : i + size])) for i in range(0, len(values), size)]
    means = [fmean(part) if part else None for part in parts]
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(" " if mean is None else BARS[round((mean - low) / step)] for mean in means)


def phases_line(rows: Sequence[MetricRow]) -> Text | None:
    """Shares of a recent step's time, the largest first."""
    recent = [row.metrics for row in rows[-RECENT:] if "time/step" in row.metrics]
    whole = sum(metrics["time/step"] for metrics in recent)
    if not whole:
        return None
    shares = {name: sum(metrics.get(f"time/{name}", 0.0) for metrics in recent) / whole for name in PHASES}
    told = [f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share]
    return Text(f"a step of {whole / len(recent):.3g} s: {', '.join(told)}")


def alarm_line(alarm: Alarm, count: int) -> Text:
    message = " ".join(alarm.message.split())[:MESSAGE_CHARACTERS]
    newest = f"the newest at step {alarm.step}: {alarm.name} ({alarm.action}): {message}"
    return Text(f"{count} {'alarm' if count == 1 else 'alarms'}, {newest}", style="bold red")
