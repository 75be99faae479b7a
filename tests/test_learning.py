"""What the learning benchmark says of curves: means over seeds, and who reaches the same gold with how many samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from benchmarks.learning import Curve, against_table, differences, mean_curve, reaching, step_table, summary_table
from benchmarks.learning_point import Point


def curve(algorithm: str, seed: int, golds: Sequence[float], tokens: int = 100) -> Curve:
    return Curve(algorithm, seed, [Point(5 * i, float(tokens * i), gold, 2 * gold) for i, gold in enumerate(golds)])


CURVES = [
    curve("ppo", 0, [0.5, 0.7, 0.9]),
    curve("ppo", 1, [0.6, 0.9, 0.9]),
    curve("trl_ppo", 0, [0.5, 0.8, 0.6], tokens=200),
    curve("trl_ppo", 1, [0.6, 0.8, 0.7], tokens=200),
]


def test_a_mean_curve_is_over_seeds_at_every_evaluation() -> None:
    points = mean_curve(CURVES, "ppo")
    assert [point.gold for point in points] == pytest.approx([0.55, 0.8, 0.9])
    assert [point.sampled_tokens for point in points] == [0, 100, 200]
    assert mean_curve(CURVES, "grpo") == []


def test_gold_is_reached_between_two_evaluations_or_never() -> None:
    points = CURVES[0].points  # .5 at 0, .7 at 100, .9 at 200 tokens
    assert reaching(points, 0.7) == pytest.approx(100)
    assert reaching(points, 0.75) == pytest.approx(125)
    assert reaching(points, 0.4) == 0
    assert reaching(points, 0.91) == math.inf


def test_ours_and_theirs_are_compared_at_the_same_gold() -> None:
    (row,) = against_table(CURVES)[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # Means: ours .55, .8, .9 at 0, 100, 200 tokens; theirs .55, .8, .65 at 0, 200, 400.
    assert cells[:5] == ["ppo", "0.1 / 0.2", "0.1 / 0.2", "0.1 / -", "0.1 / -"]
    # By seed: (.7+.9)/2 - .7 and (.9+.9)/2 - .75.
    assert differences(CURVES, "ppo", "trl_ppo") == pytest.approx([0.1, 0.15])
    assert cells[5].startswith("0.125 ± ")


def test_tables_have_a_line_an_algorithm() -> None:
    assert [line.split("|")[1].strip() for line in summary_table(CURVES)[2:]] == ["ppo", "trl_ppo"]
    assert step_table(CURVES)[0] == "| algorithm | 0 | 5 | 10 |"
    assert step_table(CURVES)[2] == "| ppo | 0.550 | 0.800 | 0.900 |"
