"""Mann-Kendall against every order of the values, Theil-Sen by hand."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest

from rlhf_ray.hacking.trends import falling_chance, rising_chance, slope


def statistic(values: tuple[float, ...]) -> int:
    return sum((b > a) - (b < a) for a, b in combinations(values, 2))


@pytest.mark.parametrize("values", [(1, 2, 3, 4, 5), (2, 1, 3, 5, 4, 6), (3, 2, 1, 0), (1, 4, 2, 3, 6, 5, 7)])
def test_the_chance_is_the_share_of_orders_that_rise_as_much(values: tuple[float, ...]) -> None:
    orders = list(permutations(values))
    expected = sum(statistic(order) >= statistic(values) for order in orders) / len(orders)
    assert rising_chance(values) == pytest.approx(expected)
    assert falling_chance(tuple(-value for value in values)) == pytest.approx(expected)


def test_ties_are_judged_by_the_normal_approximation() -> None:
    values = (1.0, 1.0, 2.0, 3.0, 3.0, 4.0)
    variance = (6 * 5 * 17 - 2 * (2 * 1 * 9)) / 18
    expected = 0.5 * math.erfc((statistic(values) - 1) / math.sqrt(2 * variance))
    assert rising_chance(values) == pytest.approx(expected)
    assert rising_chance((1.0, 1.0, 1.0)) == 1.0
    assert rising_chance((1.0,)) == 1.0


def test_noise_without_a_trend_is_as_often_significant_as_it_says() -> None:
    random = np.random.default_rng(0)
    found = sum(rising_chance(random.normal(size=40).tolist()) < 0.05 for _ in range(400))
    assert 8 <= found <= 34


def test_a_slope_is_the_median_of_all_and_minds_no_outlier() -> None:
    assert slope([0, 1, 2, 3, 100]) == 1.0
    assert slope([5, 4, 3]) == -1.0
    assert slope([1]) == 0.0
