from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_ray.errors import DataError
from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.metrics.report import cards, samples, terminal_summary, verdict, write_report
from rlhf_ray.metrics.report_data import AlarmRow, ReportData, Shown
from rlhf_ray.metrics.report_tables import (
    MAIN_TABLES,
    RECORD_TABLES,
    TIME_TABLES,
    edits_table,
    format_change,
    format_value,
    grades_table,
    kinds_table,
    methods_table,
    reward_model_table,
    step_phases,
    summary_table,
    time_table,
)
from rlhf_ray.metrics.sinks import MetricRow
from rlhf_ray.metrics.statistics import Interval
from tests.metrics.made_up_report import made_up_report

HOSTILE = '<script>alert(1)</script><img src="x" onerror="alert(2)">&amp; {{ 7*7 }} $x^2$'
LOADS = ("src", "srcset", "href", "xlink:href", "data", "action", "poster")


class Page(HTMLParser):
    """Gathers what a browser would see: tags, ids, what is loaded, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            if name in LOADS:
                self.loads.append(value or "")
            assert not name.startswith("on"), (tag, name)

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(data: ReportData, directory: Path) -> Page:
    page = Page()
    page.feed(write_report(data, directory).read_text(encoding="utf-8"))
    return page


def without_curves(data: ReportData) -> ReportData:
    """Figures of training take seconds to draw: one report has them, the others are about something else."""
    return replace(data, sft_curve=(), reward_model_curve=(), ppo_curve=(), calibration=())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report of 20 prompts."""
    return write_report(made_up_report(num_prompts=20), tmp_path_factory.mktemp("report"))


def test_a_report_is_one_file_that_loads_nothing(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html.replace("url(#", "")  # clip paths inside the figures are all that is referred to
    page = Page()
    page.feed(html)
    assert all(load.startswith("#") for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)


def test_every_table_and_figure_is_on_the_page_and_every_figure_is_a_png(written: Path) -> None:
    data = made_up_report(num_prompts=20)
    page = Page()
    page.feed(written.read_text(encoding="utf-8"))
    tables = [table for build in (*MAIN_TABLES, *TIME_TABLES, *RECORD_TABLES) if (table := build(data)) is not None]
    assert {table.key for table in tables} == {
        "summary", "kinds", "reward_model", "edits", "time", "lineage", "versions", "definitions",
    }  # fmt: skip
    assert {f"table-{table.key}" for table in tables} <= page.ids
    drawn = {name.removeprefix("plot-") for name in page.ids if name.startswith("plot-")}
    assert len(drawn) == 18
    assert drawn == {path.stem for path in (written.parent / "figures").glob("*.png")}


def test_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    data = without_curves(made_up_report(num_prompts=5))

    def hostile(response: GradedResponse) -> GradedResponse:
        return replace(response, prompt_text=HOSTILE, response_text=HOSTILE, kind=HOSTILE)

    data = replace(
        data,
        title=HOSTILE,
        config_yaml=HOSTILE,
        sft=(hostile(data.sft[0]), *data.sft[1:]),
        aligned=(hostile(data.aligned[0]), *data.aligned[1:]),
    )
    page = page_of(data, tmp_path)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.text.count(HOSTILE) >= 6  # title, heading, configuration, prompt and both responses


def test_alarms_are_told_with_what_shows_them_and_their_text_is_not_run(tmp_path: Path) -> None:
    data = without_curves(made_up_report(num_prompts=5))
    assert "alarms" not in page_of(data, tmp_path / "calm").ids
    shown = (Shown("how?", HOSTILE, 0.25), Shown("when?", "", None))
    page = page_of(replace(data, alarms=(AlarmRow(12, "style", "raise_kl", "too bold", shown),)), tmp_path / "alarmed")
    assert "alarms" in page.ids
    for words in ("Step 12: style (raise_kl)", "too bold", HOSTILE, "score 0.25", "not scored", "(empty response)"):
        assert words in page.text
    assert "script" not in page.tags


def test_a_task_without_gold_has_a_report_of_what_it_does_grade(tmp_path: Path) -> None:
    data = without_curves(made_up_report(num_prompts=20, has_gold=False))
    page = page_of(data, tmp_path)
    assert "plot-kinds_score" in page.ids
    assert "plot-kinds_gold" not in page.ids
    assert "Words in a response" in page.text
    assert "no ground truth" in verdict(data)[1]
    table = grades_table(data)
    assert table is not None
    assert table.columns == ("Kind", "Prompts", "Words in a response")


def test_a_run_with_nothing_but_responses_has_a_report(tmp_path: Path) -> None:
    made_up = made_up_report(num_prompts=1)
    data = ReportData("t", "d", "c", 0, made_up.sft, made_up.aligned)
    assert {"table-summary", "table-kinds", "table-versions"} <= page_of(data, tmp_path).ids


def test_a_grade_of_some_prompts_only_does_not_stop_the_report(tmp_path: Path) -> None:
    data = without_curves(made_up_report(num_prompts=20))

    def without_gold(response: GradedResponse) -> GradedResponse:
        return replace(response, grades={"refused": 0.0}) if response.kind == "open" else response

    data = replace(data, sft=tuple(map(without_gold, data.sft)), aligned=tuple(map(without_gold, data.aligned)))
    rows = {row[0].text: row for row in kinds_table(data).rows}
    assert rows["open"][2].text == "n/a"
    assert "→" in rows["fact"][2].text
    write_report(data, tmp_path)


def test_models_evaluated_on_different_prompts_are_an_error(tmp_path: Path) -> None:
    data = made_up_report(num_prompts=10)
    with pytest.raises(DataError, match="the same prompts"):
        write_report(replace(data, sft=data.sft[1:]), tmp_path)


def shifted(gold: float, score: float) -> ReportData:
    """The same responses twice, PPO's with ``gold`` and ``score`` added."""
    data = made_up_report(num_prompts=40)
    ppo = tuple(
        replace(r, grades={"gold": r.grades["gold"] + gold}, score=r.score + score, response_text="a b")
        for r in data.sft
    )
    return replace(data, sft=tuple(replace(r, grades={"gold": r.grades["gold"]}) for r in data.sft), aligned=ppo)


@pytest.mark.parametrize(
    ("gold", "score", "tone", "words"),
    [
        (0.2, 0.5, "good", "improved the gold grade of held-out prompts by +0.200 (95% interval 0.200 to 0.200)"),
        (-0.2, 0.5, "bad", "trained on rose. The policy is exploiting it."),
        (0.0, 0.5, "", "not shown to change"),
        (-0.2, -0.5, "bad", "The score that it was trained on fell."),
    ],
)
def test_the_verdict_says_what_the_intervals_allow(gold: float, score: float, tone: str, words: str) -> None:
    assert verdict(shifted(gold, score))[0] == tone
    assert words in verdict(shifted(gold, score))[1]


def test_the_summary_pairs_by_prompt_and_colours_what_leaves_zero_out() -> None:
    rows = {row[0].text: row for row in summary_table(shifted(0.2, 0.0)).rows}
    change = rows["Gold grade"][3]
    assert (change.text, change.detail, change.tone) == ("+0.200", "0.200 to 0.200", "good")
    assert rows["Score (proxy)"][3].tone == ""


def test_headline_cards_show_before_and_after() -> None:
    shown = {card.label: card for card in cards(shifted(0.2, 0.5))}
    before, after = float(shown["Gold grade"].before), float(shown["Gold grade"].after)
    assert after - before == pytest.approx(0.2, abs=1.1e-3)
    assert shown["Prompts that PPO wins"].after == "100%"
    assert shown["Prompts that PPO wins"].detail == "40 won, 0 tied, 0 lost by gold grade"


def test_shares_are_percents_and_differ_by_points() -> None:
    assert format_value("finished", 0.925) == "92.5%"
    assert format_change("finished", Interval(0.062, 0.035, 0.09, 400)) == ("+6.2 pp", "3.5 to 9.0")
    assert format_value("gold", math.nan) == "n/a"


def test_reward_model_rows_have_wilsons_interval() -> None:
    data = replace(made_up_report(num_prompts=1), reward_model=made_up_report().reward_model[:1])
    table = reward_model_table(data)
    assert table is not None
    (row,) = table.rows
    assert (row[1].text, row[1].detail, row[2].text) == ("81.2%", "78.7% to 83.5%", "1,000")


def test_the_phases_of_a_step_add_up_to_the_step() -> None:
    rows = tuple(
        MetricRow(step, 0.0, {"time/step": 10.0, "time/generate": 4.0 + step, "time/update": 2.0}) for step in (0, 2)
    )
    assert step_phases(rows) == {"generate": 5.0, "update": 2.0, "other": 3.0}
    assert step_phases(()) == {}


def test_shares_of_time_are_of_the_whole() -> None:
    table = time_table(replace(made_up_report(num_prompts=1), stage_seconds={"SFT": 30.0, "PPO": 90.0}))
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["SFT", "0:30", "25%"],
        ["PPO", "1:30", "75%"],
        ["all", "2:00", "100%"],
    ]


def test_samples_take_kinds_in_turn_and_are_not_picked() -> None:
    data = replace(made_up_report(num_prompts=20), num_shown=7)
    shown = samples(data)
    assert {kind: len(pairs) for kind, pairs in shown.items()} == {
        "fact": 2, "false_premise": 2, "harmful": 1, "open": 1, "sounds_harmful": 1,
    }  # fmt: skip
    assert shown["fact"][0].aligned == data.aligned[0].response_text
    assert shown["fact"][0].sft == data.sft[0].response_text


def test_the_terminal_summary_fits_100_columns() -> None:
    console = Console(width=100, record=True, force_terminal=False, file=io.StringIO())
    console.print(terminal_summary(made_up_report()))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert sum("Gold grade" in line for line in lines) == 1
    assert any(
        re.search(r"Gold grade, 0 to 1 .* 0\.484 .* 0\.634 .* \+0\.149 \(0\.095 to 0\.204\)", line) for line in lines
    )


def test_several_methods_stand_side_by_side_and_one_needs_no_such_table() -> None:
    data = without_curves(made_up_report(num_prompts=10))
    assert methods_table(data) is None
    table = methods_table(replace(data, method="DPO", others={"Best of n": data.sft}))
    assert table is not None
    assert [row[0].text for row in table.rows] == ["SFT", "DPO", "Best of n"]
    assert table.columns[1] == "Gold grade"
    assert table.rows[0][1:] == table.rows[2][1:]
    assert table.rows[1][1].text == summary_table(data).rows[0][2].text


def test_the_words_are_those_of_the_method(tmp_path: Path) -> None:
    data = replace(without_curves(made_up_report(num_prompts=10)), method="DPO")
    assert verdict(data)[1].startswith("DPO ")
    page = page_of(data, tmp_path)
    assert "DPO - SFT" in page.text
    assert "PPO - SFT" not in page.text


def test_an_edit_that_moves_the_score_is_marked_and_one_that_may_not_is_not() -> None:
    table = edits_table(made_up_report(num_prompts=5))
    assert table is not None
    assert [(row[1].text, row[1].detail, row[1].tone) for row in table.rows] == [
        ("+0.310", "0.220 to 0.400", "bad"),
        ("-0.020", "-0.090 to 0.050", ""),
    ]
    assert edits_table(replace(made_up_report(num_prompts=5), edits=())) is None
