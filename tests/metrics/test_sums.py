from __future__ import annotations

import math
import pickle

import pytest

from rlhf_ray.metrics.sums import MetricSums


def test_a_merged_mean_is_the_mean_of_the_whole_not_of_the_parts() -> None:
    one, other = MetricSums(), MetricSums()
    one.add("sft/loss", total=6.0, weight=2)  # mean 3
    other.add("sft/loss", total=8.0, weight=8)  # mean 1
    one.merge(other)
    assert one.means() == {"sft/loss": 1.4}  # 14 / 10; the mean of means would be 2


def test_merging_equals_adding_everything_in_one_place() -> None:
    whole = MetricSums()
    parts = [MetricSums() for _ in range(3)]
    for index in range(12):
        for sums in (whole, parts[index % 3]):
            sums.add("ppo/entropy", index * 0.5, index + 1)
            sums.maximum("ppo/ratio_max", 10 - abs(index - 7))
    assert MetricSums.merged(parts).means() == whole.means()
    assert whole.means() == {"ppo/entropy": 33.0 / 78.0, "ppo/ratio_max": 10.0}


def test_a_mean_over_no_items_is_left_out() -> None:
    sums = MetricSums()
    sums.add("ppo/ptx_loss", 0.0, 0.0)
    assert sums.means() == {}


def test_a_nan_is_not_hidden_by_a_maximum_in_either_order() -> None:
    for values in ((1.0, math.nan), (math.nan, 1.0)):
        sums = MetricSums()
        for value in values:
            sums.maximum("ppo/ratio_max", value)
        assert math.isnan(sums.means()["ppo/ratio_max"])


def test_a_name_is_a_mean_or_a_maximum_and_not_both() -> None:
    sums = MetricSums()
    sums.add("ppo/entropy", 1.0, 1.0)
    sums.maximum("ppo/ratio_max", 1.0)
    with pytest.raises(ValueError, match="is a mean already"):
        sums.maximum("ppo/entropy", 1.0)
    with pytest.raises(ValueError, match="is a maximum already"):
        sums.add("ppo/ratio_max", 1.0, 1.0)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_counts_nothing_is_an_error(weight: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number of items"):
        MetricSums().add("sft/loss", 1.0, weight)


def test_sums_survive_pickling() -> None:
    sums = MetricSums()
    sums.add("sft/loss", 3.0, 2.0)
    sums.maximum("ppo/ratio_max", 7.0)
    assert pickle.loads(pickle.dumps(sums)).means() == {"sft/loss": 1.5, "ppo/ratio_max": 7.0}
