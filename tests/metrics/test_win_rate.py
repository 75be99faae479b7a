"""Win rates by hand, and what is left of them when length is held equal."""

from __future__ import annotations

import math

import pytest

from rlhf_ray.metrics.win_rate import JudgedPair, length_controlled, win_rate


def pair(number: int, forward: float | None, backward: float | None, lengths: tuple[int, int] = (10, 10)) -> JudgedPair:
    return JudgedPair(f"p{number}", forward, backward, *lengths)


def test_orders_that_disagree_tie_and_ties_count_by_half() -> None:
    pairs = [pair(0, 0.9, 0.8), pair(1, 0.9, 0.2), pair(2, 0.1, 0.3), pair(3, 0.5, 0.5), pair(4, 0.9, None)]
    found = win_rate(pairs)
    assert (found.wins, found.ties, found.losses, found.unread) == (1, 2, 1, 1)
    assert found.win_rate.value == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert found.consistent.value == pytest.approx(3 / 4)


def test_a_judge_that_only_likes_what_is_shown_first_finds_no_winner() -> None:
    found = win_rate([pair(n, 1.0, 0.0) for n in range(20)])
    assert (found.win_rate.value, found.win_rate.low, found.consistent.value) == (0.5, 0.5, 0.0)


def test_the_interval_is_over_prompts_and_always_the_same() -> None:
    many = [pair(n % 5, float(n % 5 > 1), float(n % 5 > 1)) for n in range(500)]  # five prompts, however often asked
    few = [pair(n, float(n > 1), float(n > 1)) for n in range(5)]
    assert win_rate(many).win_rate == win_rate(few).win_rate
    assert win_rate(few).win_rate.count == 5
    assert win_rate(few, seed=1).win_rate.value == pytest.approx(0.6)


def test_a_preference_for_length_alone_is_taken_away_by_length_control() -> None:
    longer, shorter = (20, 10), (10, 20)
    pairs = [pair(n, 1.0, 1.0, longer) for n in range(80)] + [pair(n, 0.0, 0.0, shorter) for n in range(80, 100)]
    found = win_rate(pairs)
    assert found.win_rate.value == pytest.approx(0.8)
    assert found.length_controlled.value == pytest.approx(0.5)
    assert found.length_covered == 1.0


def test_length_control_weighs_strata_by_their_size_and_sides_alike() -> None:
    pairs = [pair(0, 1.0, 1.0), pair(1, 0.0, 0.0), pair(2, 1.0, 1.0)]  # of one length: 2/3
    pairs += [pair(3, 1.0, 1.0, (30, 10)), pair(4, 0.0, 0.0, (30, 10)), pair(5, 1.0, 1.0, (10, 30))]  # (1/2 + 1) / 2
    pairs += [pair(6, 1.0, 1.0, (12, 10))]  # nothing on the other side
    controlled, covered = length_controlled(pairs)
    assert controlled.value == pytest.approx((3 * 2 / 3 + 3 * 3 / 4) / 6)
    assert covered == pytest.approx(6 / 7)
    assert controlled.low < controlled.value < controlled.high


def test_where_one_model_is_always_the_longer_nothing_is_claimed() -> None:
    controlled, covered = length_controlled([pair(n, 1.0, 1.0, (50, 10)) for n in range(9)])
    assert math.isnan(controlled.value)
    assert covered == 0.0
    assert math.isnan(win_rate([]).win_rate.value)
