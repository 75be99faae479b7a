"""What the benchmark of a long run reads off it, and what it calls flat."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import longrun
from benchmarks.longrun import Sample, Trend, trend

STEPS = list(range(1, 501))


def noise(size: float) -> list[float]:
    chance = random.Random(0)
    return [chance.gauss(0.0, size) for _ in STEPS]


def test_a_number_that_only_scatters_is_flat() -> None:
    found = trend("memory", STEPS, [100 + each for each in noise(5.0)])
    assert found.is_flat
    assert abs(found.slope) <= found.half


def test_a_leak_is_found_within_its_interval() -> None:
    found = trend("memory", STEPS, [100 + 0.02 * step + each for step, each in zip(STEPS, noise(1.0), strict=True)])
    assert abs(found.slope - 0.02) <= found.half
    assert found.growth == pytest.approx(10.0, rel=0.15)
    assert not found.is_flat


def test_growth_that_is_small_beside_the_level_is_flat() -> None:
    assert trend("memory", STEPS, [1000 + 0.02 * step for step in STEPS]).is_flat  # 10 of 1,000


def test_what_grows_while_the_run_warms_up_is_no_leak() -> None:
    assert trend("memory", STEPS, [min(step, 50) for step in STEPS]).is_flat


def test_too_few_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="7 values"):
        trend("memory", list(range(1, 9)), [1.0] * 8)


def test_steps_are_read_from_whole_lines_of_the_log(tmp_path: Path) -> None:
    assert longrun.steps_done(tmp_path) == 0
    (tmp_path / "ppo").mkdir()
    lines = [json.dumps({"step": 0, "gold": 1.0}), json.dumps({"step": 1, "time/step": 0.5}), '{"step": 2, "ti']
    (tmp_path / "ppo" / "metrics.jsonl").write_text("\n".join(lines))
    assert longrun.step_seconds(tmp_path) == [0.5]


def test_the_page_says_what_is_not_flat_and_all_is_drawn(tmp_path: Path) -> None:
    names = ("driver: memory, MiB", "driver: open files", "owned: objects", "store, MiB")
    samples = [Sample(step, dict.fromkeys(names, float(step))) for step in STEPS]
    seconds = [0.5] * len(STEPS)
    trends = longrun.trends_of(samples, seconds)
    machine = {"cores": 2, "memory_gib": 8, "processor": "p", "gpu": "none"}
    record = {"command": "c", "note": "", "machine": machine, "versions": "v", "step_seconds": seconds}
    rows = [line for line in longrun.table(record, trends).splitlines() if line.endswith(("| NO |", "| yes |"))]
    assert [line.rsplit(" | ", 1)[1] for line in rows] == ["NO |"] * 4 + ["yes |"]
    assert asdict(trends[-1])["slope"] == pytest.approx(0.0)
    assert isinstance(trends[0], Trend)
    longrun.plot(samples, seconds, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
