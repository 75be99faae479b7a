"""The report of a run: one HTML file that needs nothing else, figures as PNG beside it, a table for the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.table import Table as RichTable
from rich.text import Text

from rlhf_ray.metrics.evaluation import ALL_KINDS, PRINCIPAL_GRADE, GradedResponse
from rlhf_ray.metrics.plots import Plot, render_svg, write_png
from rlhf_ray.metrics.report_data import ReportData
from rlhf_ray.metrics.report_ledger import LEDGER_TABLES, ledger_plots
from rlhf_ray.metrics.report_plots import outcome_plots, time_plots, training_plots
from rlhf_ray.metrics.report_tables import (
    MAIN_TABLES,
    RECORD_TABLES,
    TIME_TABLES,
    Table,
    TableBuilder,
    Tone,
    format_change,
    format_value,
    measure,
    summary_table,
    tone_of,
)

REPORT_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
RICH_STYLES: dict[Tone, str] = {"": "", "good": "green", "bad": "red", "muted": "dim"}


@dataclass(frozen=True)
class Card:
    """A number at the top of the page."""

    label: str
    before: str
    after: str
    detail: str
    tone: Tone


@dataclass(frozen=True)
class Sample:
    """One prompt and what both models answered, with the measures of each answer as short texts."""

    prompt: str
    sft: str
    aligned: str
    sft_marks: tuple[str, ...]
    aligned_marks: tuple[str, ...]


def write_report(data: ReportData, directory: Path) -> Path:
    """Write report.html and figures/*.png into ``directory`` and return the page's path.

    Raises:
        DataError: the two models were not given the same prompts.
    """
    headline = verdict(data)
    groups = {
        "outcome": outcome_plots(data),
        "training": training_plots(data),
        "time": [*time_plots(data), *ledger_plots(data)],
    }
    figures = directory / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for plots in groups.values():
        for plot in plots:
            write_png(plot, figures / f"{plot.key}.png")
    page = directory / REPORT_FILE
    page.write_text(_render(data, headline, groups), encoding="utf-8")
    return page


def _render(data: ReportData, headline: tuple[Tone, str], groups: dict[str, list[Plot]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    # The SVG is markup of ours: matplotlib escapes the labels in it. Everything else is escaped by the template.
    drawn: dict[str, Any] = {
        name: [(plot, Markup(render_svg(plot))) for plot in plots] for name, plots in groups.items()
    }
    return environment.get_template("report.html.j2").render(
        data=data,
        verdict=headline,
        cards=cards(data),
        plots=drawn,
        tables={
            "main": _built(MAIN_TABLES, data),
            "time": _built((*TIME_TABLES, *LEDGER_TABLES), data),
            "record": _built(RECORD_TABLES, data),
        },
        samples=samples(data),
    )


def _built(builders: Sequence[TableBuilder], data: ReportData) -> list[Table]:
    return [table for build in builders if (table := build(data)) is not None]


# ------------------------------------------------------------------------------------------------------------ headlines
def verdict(data: ReportData) -> tuple[Tone, str]:
    """Return what the numbers allow to be said, and its tone. It is derived from intervals, never from means alone."""
    differences = data.comparison[ALL_KINDS].differences
    score = differences["score"]
    changed = "rose" if score.is_above_zero else "fell" if score.is_below_zero else "did not clearly change"
    proxy = f"The score that it was trained on {changed}."
    gold = differences.get(PRINCIPAL_GRADE)
    if gold is None:
        return "", (
            f"{proxy} This task has no ground truth: the score is a proxy, so read the responses before believing it."
        )
    change = "{} (95% interval {})".format(*format_change(PRINCIPAL_GRADE, gold))
    if gold.is_above_zero:
        return "good", f"{data.method} improved the gold grade of held-out prompts by {change}. {proxy}"
    if gold.is_below_zero:
        hacked = " The policy is exploiting it." if score.is_above_zero else ""
        return "bad", f"{data.method} lowered the gold grade of held-out prompts by {change}. {proxy}{hacked}"
    return "", (
        f"{data.method} is not shown to change the gold grade of held-out prompts: {change}. {proxy} "
        "More prompts would narrow the interval."
    )


def cards(data: ReportData) -> list[Card]:
    """Return the headline numbers: gold, proxy, length, KL, and prompts won."""
    sft, ppo = (summary[ALL_KINDS].measures for summary in data.summaries)
    compared = data.comparison[ALL_KINDS]
    shown = []
    for name in (PRINCIPAL_GRADE, "score", "tokens", "kl_per_response"):
        if name in ppo:
            difference = compared.differences[name]
            detail = "{} ({})".format(*format_change(name, difference))
            before, after = format_value(name, sft[name].value), format_value(name, ppo[name].value)
            shown.append(Card(measure(name).label, before, after, detail, tone_of(name, difference)))
    judge = "gold grade" if PRINCIPAL_GRADE in ppo else "score"
    decided = compared.wins + compared.losses
    share = f"{compared.wins / decided:.0%}" if decided else "n/a"
    detail = f"{compared.wins} won, {compared.ties} tied, {compared.losses} lost by {judge}"
    shown.append(Card(f"Prompts that {data.method} wins", "", share, detail, ""))
    return shown


def samples(data: ReportData) -> dict[str, list[Sample]]:
    """Return pairs of responses by kind: ``num_shown`` in all, the first of each kind in order of prompt id."""
    sft = {response.prompt_id: response for response in reversed(data.sft)}  # the first response to each prompt
    ppo = {response.prompt_id: response for response in reversed(data.aligned)}
    by_kind: dict[str, list[GradedResponse]] = defaultdict(list)
    for prompt_id in sorted(ppo):
        by_kind[ppo[prompt_id].kind].append(ppo[prompt_id])
    # In turn: the first of every kind, then the second of every kind ...
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    chosen = [response for turn in turns for response in turn if response is not None][: data.num_shown]
    shown: dict[str, list[Sample]] = defaultdict(list)
    for response in chosen:
        shown[response.kind].append(_sample(sft[response.prompt_id], response))
    return dict(shown)


def _sample(sft: GradedResponse, aligned: GradedResponse) -> Sample:
    return Sample(aligned.prompt_text, sft.response_text, aligned.response_text, _marks(sft), _marks(aligned))


def _marks(response: GradedResponse) -> tuple[str, ...]:
    grades = sorted(response.grades.items(), key=lambda item: (item[0] != PRINCIPAL_GRADE, item[0]))
    marks = [f"{name} {value:.3g}" for name, value in grades]
    marks += ["not scored" if response.score is None else f"score {response.score:.2f}"]
    marks += [f"KL {response.kl:.1f}", f"{response.num_tokens} tokens"]
    return (*marks, *(() if response.finished else ("cut off",)))


# ------------------------------------------------------------------------------------------------------------- terminal
def terminal_summary(data: ReportData) -> RichTable:
    """Return the summary as a table of at most 100 columns, to be printed at the end of a run."""
    table = summary_table(data)
    shown = RichTable(title=f"{data.title}: before and after", title_justify="left", caption_justify="left")
    shown.caption = verdict(data)[1]
    shown.add_column(table.columns[0], max_width=42)
    for name in table.columns[1:]:
        shown.add_column(name, justify="right", max_width=32)
    for label, *values in table.rows:
        *models, change = values
        detail = f" ({change.detail})" if change.detail else ""
        shown.add_row(
            Text.assemble((label.text, "bold"), (f", {label.detail}", "dim")),
            *(cell.text for cell in models),
            Text(change.text + detail, style=RICH_STYLES[change.tone]),
        )
    return shown
