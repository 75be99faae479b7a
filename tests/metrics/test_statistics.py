from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rlhf_ray.metrics.statistics import (
    Interval,
    difference_interval,
    mean_interval,
    proportion_interval,
    ratio_interval,
)


def test_the_normal_interval_is_the_textbooks() -> None:
    # mean 3, s = sqrt(10 / 4) = 1.5811, s / sqrt(5) = 0.70711, times 1.95996 = 1.38590
    interval = mean_interval([1, 2, 3, 4, 5], method="normal")
    assert (interval.value, interval.count) == (3.0, 5)
    assert interval.low == pytest.approx(1.61410, abs=1e-5)
    assert interval.high == pytest.approx(4.38590, abs=1e-5)


def test_the_bootstrap_of_three_values_approaches_all_27_resamples() -> None:
    values = [0.0, 1.0, 5.0]
    means = [sum(resample) / 3 for resample in itertools.product(values, repeat=3)]
    low, high = np.percentile(np.repeat(means, 1000), [2.5, 97.5])  # 1 resample of 27 is all 0, which is more than 2.5%
    interval = mean_interval(values, num_resamples=20000)
    assert (interval.low, interval.high) == (low, high) == (0.0, 5.0)
    assert interval.value == 2.0


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 4000).tolist()
    bootstrap, normal = mean_interval(values), mean_interval(values, method="normal")
    assert bootstrap.low == pytest.approx(normal.low, abs=0.003)
    assert bootstrap.high == pytest.approx(normal.high, abs=0.003)


def test_the_bootstrap_is_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(1).normal(size=50).tolist()
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_too_few_values_have_a_mean_but_no_interval() -> None:
    one = mean_interval([4.0])
    assert (one.value, one.count) == (4.0, 1)
    assert math.isnan(one.low)
    assert not one.is_above_zero
    assert math.isnan(mean_interval([]).value)


def test_a_paired_difference_sees_what_the_spread_over_prompts_would_hide() -> None:
    baseline = [2.0 * index for index in range(50)]  # prompts differ by 98, models by 1
    treated = [value + 1.0 for value in baseline]
    assert difference_interval(treated, baseline) == Interval(1.0, 1.0, 1.0, 50)
    assert difference_interval(treated, baseline).is_above_zero
    assert difference_interval(baseline, treated).is_below_zero


def test_a_paired_difference_of_unequal_lengths_is_an_error() -> None:
    with pytest.raises(ValueError, match="one to one, got 2 and 1"):
        difference_interval([1.0, 2.0], [1.0])


def test_a_ratio_weighs_by_its_denominator() -> None:
    interval = ratio_interval([1.0, 8.0], [1.0, 2.0])  # 9 / 3, where the mean of the ratios is 2.5
    assert interval.value == 3.0
    assert (interval.low, interval.high) == (1.0, 4.0)  # a resample holds the first twice, or the second twice


def test_a_constant_ratio_has_no_width() -> None:
    interval = ratio_interval([2.0, 6.0, 4.0], [1.0, 3.0, 2.0])
    assert (interval.low, interval.value, interval.high) == (2.0, 2.0, 2.0)


def test_a_denominator_of_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ratio_interval([1.0], [0.0])


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I: 81 of 263 has 0.2553 to 0.3662; 0 of 20 has 0 to 0.1611
    interval = proportion_interval(81, 263)
    assert interval.low == pytest.approx(0.2553, abs=5e-5)
    assert interval.high == pytest.approx(0.3662, abs=5e-5)
    none = proportion_interval(0, 20)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.1611, abs=5e-5)


def test_wilsons_interval_of_nothing_is_unknown_and_of_too_much_an_error() -> None:
    assert math.isnan(proportion_interval(0, 0).value)
    with pytest.raises(ValueError, match="between 0 and total"):
        proportion_interval(3, 2)
