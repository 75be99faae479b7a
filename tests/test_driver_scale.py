"""The benchmark of the driver's cost: what it measures in a small fleet, and when memory counts as growing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import driver_scale
from benchmarks.driver_scale import Point, Sizes
from benchmarks.simulated_fleet import Measured
from benchmarks.simulator import INPUTS

SMALL = Sizes(rollouts=64, tokens=64, generators=2, ranks=2)


def test_a_hundred_times_the_tokens_take_no_more_memory() -> None:
    measured = Measured.read(INPUTS)
    few, many = (driver_scale.point("tokens", replace(SMALL, tokens=n), 2, 1, measured) for n in (64, 6400))
    assert few.median_cpu_s > 0.0
    assert many.token_bytes == 100 * few.token_bytes
    assert driver_scale.growth_per_token([many, few]) == pytest.approx(0.0, abs=0.1)


def made(tokens: int, memory_bytes: int) -> Point:
    return Point("tokens", Sizes(tokens=tokens), (0.2, 0.1, 0.3), memory_bytes)


def test_memory_that_keeps_a_hundredth_of_the_tokens_grows() -> None:
    additional = 1000 * Sizes().rollouts
    assert driver_scale.is_flat([made(100, 2**20), made(1100, 2**20 + additional // 10)])
    assert not driver_scale.is_flat([made(100, 2**20), made(1100, 2**20 + additional)])  # a byte a token


def test_a_row_has_the_median_and_the_spread() -> None:
    cells = [cell.strip() for cell in driver_scale.row(made(512, 3 * 2**20)).strip("|").split("|")]
    assert cells == ["tokens", "2,048", "512", "16", "8", "0.200", "0.100 to 0.300", "98", "3.00", "16"]


def test_every_axis_is_drawn(tmp_path: Path) -> None:
    points = [made(64, 2**20), made(512, 2**20), Point("ranks", Sizes(), (0.1,), 2**20)]
    driver_scale.plot(points, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
