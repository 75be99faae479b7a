"""Verbosity: against hand computations and a plain maximum of the likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_ray.hacking.length import (
    explained_by_length,
    indicators,
    length_controlled_win_rate,
    partial_correlation,
)


def test_a_partial_correlation_is_that_of_the_textbooks_formula() -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=200)
    x, y = z + random.normal(size=200), 0.5 * z + random.normal(size=200)
    xy, xz, yz = (np.corrcoef(a, b)[0, 1] for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_correlation(x, y, z[:, None]) == pytest.approx(expected, abs=1e-12)


def test_a_score_that_is_quality_alone_has_nothing_left_for_length() -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(1, 40, 100).astype(float)
    gold = 1.0 - lengths / 50 + 0.2 * random.normal(size=100)
    assert partial_correlation(3 * gold + 1, lengths, gold[:, None]) == 0.0
    assert explained_by_length(3 * gold + 1, lengths) > 0.3


def test_a_score_that_pays_for_length_is_seen_through_quality() -> None:
    random = np.random.default_rng(2)
    lengths = random.integers(1, 40, 100).astype(float)
    gold = random.normal(size=100)
    assert partial_correlation(gold + 0.1 * lengths, lengths, gold[:, None]) == pytest.approx(1.0)


def test_kinds_are_controls_so_that_longer_kinds_do_not_count() -> None:
    kinds = ["open", "fact"] * 50
    lengths = np.array([20.0, 5.0] * 50) + np.random.default_rng(3).normal(size=100)
    scores = np.array([2.0, 1.0] * 50) + np.random.default_rng(4).normal(size=100) * 0.1
    assert partial_correlation(scores, lengths, np.empty((100, 0))) > 0.9
    assert abs(partial_correlation(scores, lengths, indicators(kinds))) < 0.3
    assert indicators(["b", "a", "b"]).tolist() == [[1.0], [0.0], [1.0]]


def test_constants_and_too_few_points_correlate_with_nothing() -> None:
    two, three = np.array([1.0, 2.0]), np.array([1.0, 2.0, 4.0])
    assert partial_correlation(two, two, np.empty((2, 0))) == 0.0
    assert partial_correlation(three, np.ones(3), np.empty((3, 0))) == 0.0
    with pytest.raises(ValueError, match="lengths must be equal"):
        partial_correlation(two, three, np.empty((2, 0)))


def test_wins_that_follow_length_alone_are_no_wins_at_equal_length() -> None:
    differences = np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0] * 10)
    wins = (differences > 0).astype(float)
    more = np.concatenate([differences, np.full(60, 2.5)])  # and the policy has become longer
    assert length_controlled_win_rate(wins, differences) == pytest.approx(0.5)
    won = np.concatenate([wins, np.ones(60)])
    assert won.mean() == 0.75
    assert length_controlled_win_rate(won, more) < 0.55


def test_wins_that_have_nothing_to_do_with_length_stay() -> None:
    differences = np.array([-2.0, 2.0] * 50)
    wins = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0] * 12 + [1.0, 1.0, 1.0, 1.0])
    assert length_controlled_win_rate(wins, differences) == pytest.approx(wins.mean(), abs=0.01)
    assert length_controlled_win_rate(wins, np.zeros(100)) == pytest.approx(wins.mean(), abs=0.01)


def test_the_weights_are_those_of_the_largest_likelihood() -> None:
    random = np.random.default_rng(5)
    differences = random.normal(size=300)
    shape = np.tanh(differences / differences.std())
    wins = (random.random(300) < 1 / (1 + np.exp(-(0.7 + 1.2 * shape)))).astype(float)
    found = length_controlled_win_rate(wins, differences)

    def loss(theta: float, phi: float) -> float:
        logits = theta + phi * shape
        return float(np.sum(np.log1p(np.exp(logits)) - wins * logits) + 0.005 * (theta**2 + phi**2))

    theta, phi = math.log(found / (1 - found)), 0.0
    for width in (1.0, 0.1, 0.01, 0.001):
        phi = min((phi + width * k for k in range(-30, 31)), key=lambda p: loss(theta, p))
    assert all(loss(theta, phi) <= loss(theta + step, phi) + 1e-4 for step in (-0.05, 0.05))


def test_all_wins_stay_finite_and_no_prompts_give_no_number() -> None:
    assert 0.99 < length_controlled_win_rate(np.ones(50), np.arange(50.0)) < 1.0
    assert math.isnan(length_controlled_win_rate(np.array([]), np.array([])))
    with pytest.raises(ValueError, match="between 0 and 1"):
        length_controlled_win_rate(np.array([2.0]), np.array([0.0]))
    with pytest.raises(ValueError, match="must match"):
        length_controlled_win_rate(np.ones(2), np.ones(3))
