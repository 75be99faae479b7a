"""What suites have found out of every model: rows with intervals, as one table on the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rich.table import Table
from rich.text import Text

from rlhf_ray.metrics.registry import describe
from rlhf_ray.metrics.statistics import Interval, difference_interval, mean_interval, proportion_interval

Verdict: TypeAlias = Literal["", "better", "worse", "other"]
MARKS: Mapping[Verdict, str] = {"": "", "better": " ▲", "worse": " ▼", "other": " ≠"}
STYLES: Mapping[Verdict, str] = {"": "", "better": "green", "worse": "red", "other": "yellow"}
LEGEND = (
    "95% intervals over prompts. ▲ better, ▼ worse, ≠ other than {baseline} on the same prompts, beyond the interval "
    "of the difference; for win rates, than even."
)


@dataclass(frozen=True)
class Row:
    """One measure of one model on one suite. ``difference`` is to the baseline on the same items; None for itself."""

    suite: str
    model: str
    measure: str  # as the registry knows it
    interval: Interval
    difference: Interval | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the model differs from the baseline by more than the interval of the difference."""
        if self.difference is None or not (self.difference.is_above_zero or self.difference.is_below_zero):
            return ""
        better = describe(self.measure).better
        if not better:
            return "other"
        return "better" if self.difference.is_above_zero == (better == "higher") else "worse"

    def as_dict(self) -> dict[str, Any]:
        """For a file: NaN, which JSON has not, is None."""
        found = {"suite": self.suite, "model": self.model, "measure": self.measure, "unit": describe(self.measure).unit}
        row: dict[str, Any] = {**found, **_plain("", self.interval)}
        return row if self.difference is None else {**row, **_plain("difference_", self.difference)}


def measure_rows(suite: str, measure: str, values: Mapping[str, Mapping[str, float]], baseline: str) -> list[Row]:
    """One row a model of a measure that every prompt has (model -> prompt id -> its mean over samples)."""
    rows = []
    known = values.get(baseline, {})
    for model, own in values.items():
        both = sorted(own.keys() & known.keys())
        compared = model != baseline and len(both) > 0
        difference = difference_interval([own[p] for p in both], [known[p] for p in both]) if compared else None
        rows.append(Row(suite, model, measure, share_or_mean([own[p] for p in sorted(own)]), difference))
    return rows


def share_or_mean(values: Sequence[float]) -> Interval:
    """Wilson's interval where every value is a yes or a no, the bootstrap for anything else."""
    if values and all(value in (0.0, 1.0) for value in values):
        return proportion_interval(sum(values), len(values))
    return mean_interval(values)


def _plain(prefix: str, interval: Interval) -> dict[str, float | int | None]:
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    plain = {f"{prefix}{name}": value if math.isfinite(value) else None for name, value in ends.items()}
    return {**plain, f"{prefix}count": interval.count}


# --------------------------------------------------------------------------------------------------------------- tables
def results_table(rows: Sequence[Row], models: Sequence[str], baseline: str) -> Table:
    """A line a measure, a column a model, for the terminal."""
    table = Table(title="Suites", title_justify="left", caption_justify="left")
    table.caption = LEGEND.format(baseline=baseline)
    table.add_column("suite")
    table.add_column("measure")
    for model in models:
        table.add_column(f"{model} (baseline)" if model == baseline and len(models) > 1 else model, justify="right")
    shown = ""
    for (suite, measure), found in _lines(rows).items():
        cells = [Text(*_cell(found[m])) if m in found else Text("n/a", "dim") for m in models]
        table.add_row("" if suite == shown else suite, _label(measure), *cells, end_section=False)
        shown = suite
    return table


def markdown_table(rows: Sequence[Row], models: Sequence[str], baseline: str) -> str:
    """The same for a file, with the differences to the baseline."""
    head = ["suite", "measure", *models]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(models)]
    for (suite, measure), found in _lines(rows).items():
        cells = [_with_difference(found[m]) if m in found else "n/a" for m in models]
        lines.append("| " + " | ".join([suite, _label(measure), *cells]) + " |")
    differences = "The second number of a cell is the difference to the baseline."
    return "\n".join([*lines, "", LEGEND.format(baseline=baseline), *([differences] if len(models) > 1 else []), ""])


def _lines(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Rows by (suite, measure), in the order in which they came, then by model."""
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row.suite, row.measure), {})[row.model] = row
    return lines


def _label(measure: str) -> str:
    if measure.startswith("pass_at/"):
        return f"pass@{measure.removeprefix('pass_at/')}"
    return measure.removeprefix("suite/").removeprefix("grade/").replace("_", " ")


def _cell(row: Row) -> tuple[str, str]:
    return _with_ends(row.interval) + MARKS[row.verdict], STYLES[row.verdict]


def _with_difference(row: Row) -> str:
    text = _cell(row)[0]
    if row.difference is None or row.measure.endswith("win_rate"):
        return text
    return f"{text}; {_number(row.difference.value, signed=True)}"


def _with_ends(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{_number(interval.value)} (n = {interval.count})"
    return f"{_number(interval.value)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "n/a"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"+{text}" if signed and value > 0 else text
