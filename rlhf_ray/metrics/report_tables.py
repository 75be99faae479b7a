"""The tables of a report, as text: each from the run's data alone, in one place for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rlhf_ray.metrics.definition import Better
from rlhf_ray.metrics.evaluation import ALL_KINDS, PRINCIPAL_GRADE, Comparison, ModelSummary, summarise
from rlhf_ray.metrics.progress import format_duration
from rlhf_ray.metrics.registry import describe
from rlhf_ray.metrics.report_data import ReportData
from rlhf_ray.metrics.sinks import MetricRow, format_number
from rlhf_ray.metrics.statistics import Interval, proportion_interval

Tone: TypeAlias = Literal["", "good", "bad", "muted"]


@dataclass(frozen=True)
class Cell:
    """``detail`` is what stands beside the text, smaller: an interval, most often."""

    text: str
    detail: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """``key`` names the table for links and tests; the first ``num_labels`` columns hold words, the rest numbers."""

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_labels: int = 1


@dataclass(frozen=True)
class Measure:
    """How a measure of a response is called and shown."""

    label: str
    unit: str
    better: Better = ""
    decimals: int = 3
    is_share: bool = False  # shown in percent


MEASURES: dict[str, Measure] = {
    PRINCIPAL_GRADE: Measure("Gold grade", "0 to 1", "higher"),
    "score": Measure("Score (proxy)", "reward", "higher"),
    "kl_per_response": Measure("KL from the reference", "nats/response", decimals=2),
    "kl_per_token": Measure("KL from the reference", "nats/token"),
    "tokens": Measure("Response length", "tokens", decimals=1),
    "finished": Measure("Finished responses", "share", "higher", 1, is_share=True),
    "repetition": Measure("Repeated word triples", "share", "lower", 1, is_share=True),
    "refused": Measure("Refusals", "share", "", 1, is_share=True),
    "helpful": Measure("Helpful", "0 to 1", "higher"),
    "honest": Measure("Honest", "0 to 1", "higher"),
    "harmless": Measure("Harmless", "0 to 1", "higher"),
    "concise": Measure("Concise", "0 to 1", "higher"),
    "words": Measure("Words in a response", "words", decimals=1),
}


def measure(name: str) -> Measure:
    """Return how ``name`` is shown; a task's own grade is shown under its own name."""
    return MEASURES.get(name) or Measure(name.replace("_", " ").replace(".", ": ").capitalize(), "grade")


def format_value(name: str, value: float) -> str:
    """Return the measure ``name`` as text, with the decimals that it is always shown with."""
    if not math.isfinite(value):
        return "n/a"
    shown = measure(name)
    return f"{100 * value:.{shown.decimals}f}%" if shown.is_share else f"{value:.{shown.decimals}f}"


def format_interval(name: str, interval: Interval) -> str:
    """Return the ends of an interval of the measure ``name``, or how few values there were for one."""
    if math.isnan(interval.low):
        return f"n = {interval.count}"
    return f"{format_value(name, interval.low)} to {format_value(name, interval.high)}"


def format_change(name: str, difference: Interval) -> tuple[str, str]:
    """Return a difference of the measure ``name`` with its sign, and its interval. Shares differ by points (pp)."""
    sign = "+" if difference.value > 0 else ""
    text, interval = sign + format_value(name, difference.value), format_interval(name, difference)
    return text.replace("%", " pp"), interval.replace("%", "")


def tone_of(name: str, difference: Interval) -> Tone:
    """Good or bad where the measure has a direction and the interval leaves zero out; else none."""
    better = measure(name).better
    if not better or not (difference.is_above_zero or difference.is_below_zero):
        return ""
    return "good" if difference.is_above_zero == (better == "higher") else "bad"


def _cell(name: str, interval: Interval | None) -> Cell:
    if interval is None:
        return Cell("n/a", tone="muted")
    return Cell(format_value(name, interval.value), format_interval(name, interval))


def _signed(name: str, interval: Interval) -> Cell:
    return Cell(*format_change(name, interval), tone_of(name, interval))


# ------------------------------------------------------------------------------------------------- models, kinds, pairs
def summary_table(data: ReportData) -> Table:
    sft, ppo = (summary[ALL_KINDS] for summary in data.summaries)
    compared = data.comparison[ALL_KINDS]
    rows: list[tuple[Cell, ...]] = []
    for name in ppo.measures:
        shown = measure(name)
        difference = compared.differences.get(name)
        change = _signed(name, difference) if difference is not None else Cell("")
        rows.append(
            (
                Cell(shown.label, shown.unit),
                _cell(name, sft.measures.get(name)),
                _cell(name, ppo.measures[name]),
                change,
            )
        )
    distinct = tuple(Cell(f"{100 * model.distinct_2:.1f}%") for model in (sft, ppo))
    rows.append((Cell("Different word pairs", "share of all pairs"), *distinct, Cell("")))
    note = (
        f"{ppo.num_prompts} held-out prompts, {ppo.num_responses} responses of each model. Ranges are 95% intervals; "
        "the difference is paired by prompt. Colour marks a difference whose interval leaves zero out."
    )
    return Table(
        "summary", "Before and after", note, ("Measure", "SFT", data.method, f"{data.method} - SFT"), tuple(rows)
    )


KIND_COLUMNS = (PRINCIPAL_GRADE, "score", "kl_per_response", "tokens", "refused", "finished")


def kinds_table(data: ReportData) -> Table:
    measures = data.summaries[1][ALL_KINDS].measures
    names = [name for name in KIND_COLUMNS if name in measures]
    judge = "gold grade" if PRINCIPAL_GRADE in measures else "score"
    note = (
        f"SFT → {data.method}. Won, tied and lost count the prompts on which {data.method}'s {judge} is above, equal, "
        "below SFT's."
    )
    counts = [Cell(f"{c.wins} / {c.ties} / {c.losses}") for c in data.comparison.values()]
    rows = [(*row, count) for row, count in zip(_kind_rows(data, names), counts, strict=True)]
    columns = ("Kind", "Prompts", *(measure(name).label for name in names), "Won / tied / lost")
    return Table("kinds", "By kind of prompt", note, columns, tuple(rows))


def grades_table(data: ReportData) -> Table | None:
    """Return the task's own grades by kind, those aside that the table of kinds shows."""
    names = sorted({name for response in data.aligned for name in response.grades} - set(KIND_COLUMNS))
    if not names:
        return None
    columns = ("Kind", "Prompts", *(measure(name).label for name in names))
    note = f"SFT → {data.method}: what else the task measures of a response."
    return Table("grades", "Other grades by kind", note, columns, tuple(_kind_rows(data, names)))


def _kind_rows(data: ReportData, names: Sequence[str]) -> list[tuple[Cell, ...]]:
    sft, ppo = data.summaries
    return [
        (
            Cell(kind or "(no kind)"),
            Cell(str(ppo[kind].num_prompts)),
            *(_change_cell(name, sft[kind], ppo[kind], data.comparison[kind]) for name in names),
        )
        for kind in ppo
    ]


def _change_cell(name: str, sft: ModelSummary, ppo: ModelSummary, compared: Comparison) -> Cell:
    difference = compared.differences.get(name)
    if difference is None:
        return Cell("n/a", tone="muted")
    before, after = format_value(name, sft.measures[name].value), format_value(name, ppo.measures[name].value)
    return Cell(f"{before} → {after}", tone=tone_of(name, difference))


METHOD_COLUMNS = (PRINCIPAL_GRADE, "score", "kl_per_response", "tokens", "refused", "repetition")


def methods_table(data: ReportData) -> Table | None:
    """Return all models of the run side by side, where there are more than two."""
    if not data.others:
        return None
    answers = {"SFT": data.sft, data.method: data.aligned, **data.others}
    measured = {name: summarise(responses)[ALL_KINDS].measures for name, responses in answers.items()}
    names = [name for name in METHOD_COLUMNS if all(name in found for found in measured.values())]
    rows = [(Cell(method), *(_cell(name, found[name]) for name in names)) for method, found in measured.items()]
    columns = ("Model", *(measure(name).label for name in names))
    note = "The same held-out prompts, answered by the SFT model and by what each method made of it; 95% intervals."
    return Table("methods", "Methods side by side", note, columns, tuple(rows))


def reward_model_table(data: ReportData) -> Table | None:
    if not data.reward_model:
        return None
    rows = []
    for row in data.reward_model:
        interval = proportion_interval(row.correct, row.total)
        name = "finished"  # any share: percent with one decimal
        rows.append((Cell(row.name), _cell(name, interval), Cell(f"{row.total:,}")))
    note = (
        "Agreement with people on held-out pairs, with Wilson's 95% interval. A model that is right only where the "
        "longer response was chosen has learned length, not quality."
    )
    return Table("reward_model", "Reward model", note, ("Pairs", "Accuracy", "Number"), tuple(rows))


def edits_table(data: ReportData) -> Table | None:
    """What the reward model rewards, beside what a response says."""
    if not data.edits:
        return None
    rows = []
    for row in data.edits:
        interval = Interval(row.change, row.low, row.high, row.count)
        text, detail = format_change("score", interval)
        moved = interval.is_above_zero or interval.is_below_zero
        rows.append((Cell(row.name), Cell(text, detail, "bad" if moved else ""), Cell(f"{row.count:,}")))
    note = (
        "The same held-out responses, edited so that they say the same: by how many deviations of the score an edit "
        "moves it, with its 95% interval. Colour marks an interval that leaves zero out: the model rewards, or "
        "punishes, the form itself."
    )
    return Table("edits", "What the reward model rewards", note, ("Edit", "Change of score", "Responses"), tuple(rows))


# -------------------------------------------------------------------------------------------------------- time, lineage
def step_phases(rows: tuple[MetricRow, ...]) -> dict[str, float]:
    """Return the mean seconds of each phase of a step, and under ``other`` what no phase accounts for."""
    timed = [row.metrics for row in rows if "time/step" in row.metrics]
    if not timed:
        return {}
    names = ("time/generate", "time/score", "time/update", "time/sync", "time/evaluate", "time/save")
    means = {name: sum(metrics.get(name, 0.0) for metrics in timed) / len(timed) for name in names}
    whole = sum(metrics["time/step"] for metrics in timed) / len(timed)
    phases = {name.removeprefix("time/"): mean for name, mean in means.items() if mean > 0}
    return phases | {"other": max(0.0, whole - sum(phases.values()))}


def time_table(data: ReportData) -> Table | None:
    if not data.stage_seconds:
        return None
    total = sum(data.stage_seconds.values())
    rows = [
        (Cell(stage), Cell(format_duration(seconds)), Cell(f"{seconds / total:.0%}" if total else ""))
        for stage, seconds in (*data.stage_seconds.items(), ("all", total))
    ]
    note = "Wall time of every stage, from its start to its last file."
    return Table("time", "Where the time went", note, ("Stage", "Time", "Share"), tuple(rows))


def lineage_table(data: ReportData) -> Table | None:
    if not data.artefacts:
        return None
    rows = [
        (
            Cell(a.name),
            Cell(a.stage),
            Cell(a.fingerprint),
            Cell(", ".join(a.made_from)),
            Cell(format_duration(a.seconds)),
        )
        for a in data.artefacts
    ]
    note = "What each stage wrote, its fingerprint, and what it was made from."
    columns = ("Artefact", "Stage", "Fingerprint", "Made from", "Time")
    return Table("lineage", "Lineage", note, columns, tuple(rows), num_labels=4)


def versions_table(data: ReportData) -> Table:
    rows = [(Cell(name), Cell(version)) for name, version in data.versions.items()]
    return Table(
        "versions",
        "Versions and seed",
        "",
        ("Part", "Version"),
        ((Cell("seed"), Cell(str(data.seed))), *rows),
        num_labels=2,
    )


def definitions_table(data: ReportData) -> Table | None:
    """Every metric that the run logged, with its last value."""
    last: dict[str, float] = {}
    for row in (*data.sft_curve, *data.reward_model_curve, *data.ppo_curve, *data.dpo_curve):
        last.update(row.metrics)
    if not last:
        return None
    rows = []
    for name, value in last.items():
        known = describe(name)
        rows.append((Cell(name), Cell(known.definition), Cell(known.unit), Cell(format_number(value))))
    columns = ("Metric", "Definition", "Unit", "Last")
    return Table("definitions", "Every metric and its definition", "", columns, tuple(rows), num_labels=3)


TableBuilder: TypeAlias = Callable[[ReportData], Table | None]
MAIN_TABLES: tuple[TableBuilder, ...] = (
    summary_table,
    methods_table,
    kinds_table,
    grades_table,
    reward_model_table,
    edits_table,
)
TIME_TABLES: tuple[TableBuilder, ...] = (time_table,)
RECORD_TABLES: tuple[TableBuilder, ...] = (lineage_table, versions_table, definitions_table)
