"""What `rlhf-ray status` shows of a run's logs."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console, Group

from rlhf_ray.metrics.sinks import MetricRow
from rlhf_ray.viewing.run import Run
from rlhf_ray.viewing.terminal import phases_line, progress_line, seen, sparkline
from tests.viewing.made_up import made_up_run


def shown(*parts: object) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(Group(*parts))  # type: ignore[arg-type]
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    return written


def rows(count: int, seconds: float) -> list[MetricRow]:
    return [MetricRow(step, 1000.0 + seconds * step, {"time/step": 4.0, "time/update": 3.0}) for step in range(count)]


def test_a_run_shows_steps_curves_phases_and_its_newest_alarm(tmp_path: Path) -> None:
    made = made_up_run(tmp_path / "run")
    text = shown(*seen(Run(made.root, 0, "run")))
    assert f"ppo: step 3/{made.config.ppo.num_steps}" in text
    assert "a step of 4 s: update 75%" in text
    assert "1 alarm, the newest at step 2: length (warned)" in text
    score = next(line for line in text.splitlines() if "ppo/score_mean" in line)
    assert "0.1" in score
    assert "▁▅█" in score or "▁▄█" in score


def test_a_run_that_has_logged_nothing_shows_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("ppo: [")
    assert seen(Run(tmp_path, 0, "run")) == []


def test_rate_and_time_left_are_of_recent_steps() -> None:
    slow_then_fast = [*rows(5, 100.0), *(MetricRow(5 + n, 2000.0 + 2.0 * n, {}) for n in range(26))]
    assert progress_line("ppo", slow_then_fast, 60).plain == "ppo: step 30/60, 2 s per step, 1:00 left"
    assert progress_line("sft", rows(1, 1.0), 0).plain == "sft: step 0"


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([2.0, 2.0], "▁▁"), ([0.0, 7.0], "▁█"), ([math.nan, 1.0, math.inf, 2.0], " ▁ █")],
)
def test_a_sparkline_has_a_bar_a_value_and_a_gap_for_none(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars


def test_many_values_are_means_of_neighbours() -> None:
    assert sparkline([0.0, 2.0, 8.0, 8.0], width=2) == "▁█"


def test_shares_are_of_steps_that_were_timed() -> None:
    line = phases_line(rows(3, 1.0))
    assert line is not None
    assert line.plain == "a step of 4 s: update 75%"
    assert phases_line([MetricRow(1, 0.0, {})]) is None
