"""``rlhf-ray metrics``: definitions, and a run's newest values with what to do about them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from rlhf_ray.metrics.sinks import JsonlSink


def shown(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["metrics", *arguments], env={"COLUMNS": "240"})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "ppo").mkdir()
    sink = JsonlSink(tmp_path / "ppo" / "metrics.jsonl", None)
    sink.write(1, {"ppo/clip_fraction": 0.1, "ppo/score_mean": 0.2, "gold/heldout_mean": 0.6})
    sink.write(2, {"ppo/clip_fraction": 0.7, "ppo/score_mean": 0.4})
    sink.close()
    return tmp_path


def test_a_metric_is_shown_with_its_definition_range_and_remedy() -> None:
    result = shown("ppo/clip_fraction")
    assert result.exit_code == 0
    for part in (
        "Share of tokens whose ratio",
        "from the trainer of stage ppo",
        "Healthy: at most 0.3",
        "ppo.num_epochs",
    ):
        assert part in result.output


def test_a_pattern_that_matches_nothing_names_the_groups() -> None:
    result = shown("pp/*")
    assert result.exit_code == 2
    assert "'ppo/*'" in result.output


def test_a_run_s_newest_values_are_shown_and_the_unhealthy_first(run: Path) -> None:
    output = shown("--run", str(run)).output
    lines = [line for line in output.splitlines() if "/" in line]
    assert "ppo/clip_fraction" in lines[0]
    assert "0.7" in lines[0]
    assert "ppo/clip_fraction is 0.7000: Fewer ppo.num_epochs" in output
    assert any("gold/heldout_mean" in line and "0.6" in line and "│ 1 " in line for line in lines)
    assert any("ppo/score_mean" in line and "0.4" in line for line in lines)


def test_a_directory_without_logs_is_an_error(tmp_path: Path) -> None:
    result = shown("--run", str(tmp_path))
    assert result.exit_code == 2
    assert "holds no metrics.jsonl" in result.output
