"""Curves: where they run, what is thinned, and where a run left the healthy range."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlhf_ray.metrics.health import HEALTH
from rlhf_ray.metrics.sinks import MetricRow
from rlhf_ray.viewing.curves import Source, curve, curves, sources, stage_names
from rlhf_ray.viewing.drawing import MAX_POINTS, draw, thinned, ticks
from rlhf_ray.viewing.run import open_runs
from tests.viewing.made_up import made_up_run


def source(*values: float, name: str = "ppo/kl_per_token", label: str = "run", first: int = 1) -> Source:
    rows = [MetricRow(step, 3600.0 * step, {name: value}) for step, value in enumerate(values, start=first)]
    return Source(label, 0, tuple(rows))


def test_a_line_goes_from_corner_to_corner_of_its_picture() -> None:
    drawing = draw([(3, [(0.0, 0.0), (10.0, 1.0)])])
    assert drawing is not None
    # 4% of room above and below, in 174 units of height from 10 on: 0 lies at 10 + 174 * 1.04 / 1.08.
    assert drawing.lines[0].path == "M52 177.6L372 16.4"
    assert [tick.label for tick in drawing.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert drawing.lines[0].points == "52.0,177.6,0,0 372.0,16.4,10,1.000"


def test_what_is_no_number_ends_a_line_and_the_next_begins_behind_it() -> None:
    drawing = draw([(0, [(0.0, 1.0), (1.0, math.nan), (2.0, 1.0), (3.0, 1.0)])])
    assert drawing is not None
    assert drawing.lines[0].path.count("M") == 2
    assert draw([(0, [(0.0, math.nan), (1.0, math.inf)])]) is None


def test_a_spike_survives_thinning() -> None:
    points = [(float(step), 0.0) for step in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS
    assert {(54_321.0, 9.0), (77_777.0, -9.0)} <= set(kept)
    assert kept == sorted(kept)
    assert thinned(points[:5]) == points[:5]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 5, 10]), (0.13, 0.29, [0.15, 0.2, 0.25]), (-3, 4, [-2, 0, 2, 4]), (0, 3e-5, [0, 1e-5, 2e-5, 3e-5])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == pytest.approx(expected)


def test_a_limit_is_drawn_where_it_is_near_and_points_beyond_it_are_marked() -> None:
    near = draw([(0, [(0.0, 0.3), (1.0, 0.6)])], high=0.5)
    far = draw([(0, [(0.0, 0.001), (1.0, 0.002)])], high=0.5)
    assert near is not None
    assert far is not None
    assert [limit.label for limit in near.limits] == ["0.5"]
    assert len(near.lines[0].dots) == 1
    assert far.limits == ()


def test_a_curve_tells_where_a_run_left_the_healthy_range_and_whether_it_is_back() -> None:
    high = HEALTH["ppo/kl_per_token"].high
    made = curve(
        "ppo/kl_per_token", [source(0.1, high + 1, high + 2, 0.1, label="back"), source(0.1, 9.0, label="out")]
    )
    back, out = made.outside
    assert (back.label, back.count, back.of, back.first, back.is_now) == ("back", 2, 4, 2.0, False)
    assert (out.count, out.first, out.is_now) == (1, 2.0, True)
    assert made.unit == "nats/token"
    assert made.health is HEALTH["ppo/kl_per_token"]


def test_without_a_range_only_what_is_no_number_is_outside() -> None:
    assert curve("ppo/score_mean", [source(1.0, 1e9, name="ppo/score_mean")]).outside == ()
    (outside,) = curve("ppo/score_mean", [source(1.0, math.nan, name="ppo/score_mean")]).outside
    assert outside.is_now


def test_a_metric_of_another_version_is_drawn_without_a_definition() -> None:
    made = curve("ppo/of_the_future", [source(1.0, 2.0, name="ppo/of_the_future")])
    assert made.definition == "This version has no definition of it."
    assert made.drawing is not None


def test_a_step_that_was_done_again_counts_with_its_last_value() -> None:
    rows = (*source(1.0, 2.0).rows, *source(5.0, 6.0, first=2).rows)
    assert curve("ppo/kl_per_token", [Source("run", 0, rows)]).lines[0].points == ((1.0, 1.0), (2.0, 5.0), (3.0, 6.0))


def test_over_time_a_curve_begins_at_hour_0() -> None:
    assert [x for x, _ in curve("ppo/kl_per_token", [source(1.0, 2.0)], by_time=True).lines[0].points] == [0.0, 1.0]


def test_runs_lie_over_one_another_and_so_do_rounds(tmp_path: Path) -> None:
    one, two = made_up_run(tmp_path / "one"), made_up_run(tmp_path / "two", steps=2)
    runs = open_runs([one.root, two.root])
    assert stage_names(runs) == ["ppo"]
    found = curves(sources(runs, "ppo"), pattern="SCORE proxy")
    assert found == []
    (score,) = curves(sources(runs, "ppo"), pattern="score mean")
    assert [(line.label, line.colour, len(line.points)) for line in score.lines] == [("one", 0, 3), ("two", 1, 2)]
    (one.root / "round_1" / "ppo").mkdir(parents=True)
    (one.root / "round_1" / "ppo" / "metrics.jsonl").write_bytes((one.ppo / "metrics.jsonl").read_bytes())
    labels = [source.label for source in sources(open_runs([one.root]), "ppo")]
    assert labels == ["one", "round 1"]
    assert [source.colour for source in sources(open_runs([one.root, two.root]), "ppo")] == [0, 1, 2]


def test_only_what_left_its_range_where_that_is_asked_for(tmp_path: Path) -> None:
    runs = open_runs([made_up_run(tmp_path / "run").root])
    assert [each.name for each in curves(sources(runs, "ppo"), only_outside=True)] == ["ppo/kl_per_token"]
