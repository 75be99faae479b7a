"""What people look at: sampled with known chances, all of them above 0."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.review import (
    Reviewable,
    allocation,
    choose,
    inclusion_probabilities,
    stratum_of,
    systematic_sample,
)

ITEMS = [Reviewable(f"i{n}", "ask" if n % 3 else "harm", 0.5 + (n % 50) / 100) for n in range(300)]


def test_chances_are_in_proportion_and_sum_to_the_sample_s_size() -> None:
    assert inclusion_probabilities([1.0, 2.0, 1.0], 2) == pytest.approx([0.5, 1.0, 0.5])
    # 8 of 10 would be 1.6: certain, and the other shares what is left of 2.
    assert inclusion_probabilities([8.0, 1.0, 1.0], 2) == pytest.approx([1.0, 0.5, 0.5])


def test_a_systematic_sample_takes_each_place_with_its_own_chance_and_as_many_as_asked() -> None:
    chances, draw = inclusion_probabilities([1.0, 2.0, 3.0, 4.0], 2), random.Random(0)
    taken = [systematic_sample(chances, draw) for _ in range(4000)]
    assert {len(each) for each in taken} == {2}
    counts = Counter(place for each in taken for place in each)
    for place, chance in enumerate(chances):
        assert counts[place] / 4000 == pytest.approx(chance, abs=0.03)


def test_the_unsure_are_chosen_more_often_and_nobody_s_chance_is_0() -> None:
    chosen = choose(ITEMS, "unsure", size=60, threshold=0.0, seed=0)
    assert len(chosen) == 60
    confidence = {item.item_id: item.confidence for item in ITEMS}
    mean = math.fsum(confidence[each.item_id] for each in chosen) / 60
    assert mean < 0.72 < math.fsum(confidence.values()) / 300
    ordered = sorted(chosen, key=lambda each: confidence[each.item_id])
    assert ordered[0].inclusion > ordered[-1].inclusion > 0
    assert choose(ITEMS, "unsure", size=60, threshold=0.0, seed=0) == chosen
    assert choose(ITEMS, "unsure", size=60, threshold=0.0, seed=1) != chosen


def test_a_stratified_sample_has_every_kind_and_level_in_proportion() -> None:
    chosen = choose(ITEMS, "stratified", size=60, threshold=0.0, seed=0)
    assert len(chosen) == 60
    whole, taken = Counter(map(stratum_of, ITEMS)), Counter(each.stratum for each in chosen)
    assert set(taken) == set(whole)
    for name, size in whole.items():
        assert abs(taken[name] - size / 5) <= 1
        assert {each.inclusion for each in chosen if each.stratum == name} == {taken[name] / size}


def test_strata_are_kinds_of_prompts_at_levels_of_confidence() -> None:
    assert stratum_of(Reviewable("i", "ask", 0.5)) == "ask/0.5"
    assert stratum_of(Reviewable("i", "ask", 0.69)) == "ask/0.6"
    assert stratum_of(Reviewable("i", "", 1.0)) == "/0.9"


def test_an_allocation_gives_every_stratum_one_and_no_stratum_more_than_it_has() -> None:
    assert allocation({"a": 98, "b": 1, "c": 1}, 10) == {"a": 8, "b": 1, "c": 1}
    assert allocation({"a": 5, "b": 5}, 10) == {"a": 5, "b": 5}
    assert allocation({"a": 7, "b": 2, "c": 1}, 5) == {"a": 3, "b": 1, "c": 1}
    with pytest.raises(ConfigError, match=r"--sample \(1\) must be 2 or more"):
        allocation({"a": 5, "b": 5}, 1)


def test_below_takes_all_under_the_threshold_and_a_sample_of_more_than_all_takes_all() -> None:
    below = choose(ITEMS, "below", size=1, threshold=0.6, seed=0)
    assert {each.item_id for each in below} == {item.item_id for item in ITEMS if item.confidence < 0.6}
    assert {each.inclusion for each in choose(ITEMS, "unsure", size=999, threshold=0.0, seed=0)} == {1.0}
    with pytest.raises(ConfigError, match="--sample"):
        choose(ITEMS, "unsure", size=0, threshold=0.0, seed=0)
