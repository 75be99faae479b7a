"""Agreement with people, estimated for all items from a sample that favours the doubtful ones."""

from __future__ import annotations

import math
import random

import pytest

from rlhf_ray.judging.agreement import Agreement, Compared, weighted_share, wilson
from rlhf_ray.judging.review import Reviewable, choose
from rlhf_ray.metrics.statistics import proportion_interval


def pair(number: int, agrees: bool, *, inclusion: float = 1.0, confidence: float = 0.8) -> Compared:
    return Compared(f"i{number}", inclusion, 1, 1 if agrees else -1, confidence)


def test_equal_chances_give_the_plain_share_with_wilson_s_interval() -> None:
    found = weighted_share([pair(n, n % 5 > 0) for n in range(200)])
    plain = proportion_interval(160, 200)
    assert (found.value, found.count) == (pytest.approx(0.8), 200)
    assert (found.low, found.high) == (pytest.approx(plain.low, abs=1e-3), pytest.approx(plain.high, abs=1e-3))
    assert wilson(0.8, 200) == pytest.approx((plain.low, plain.high))


def test_each_item_counts_by_the_inverse_of_its_chance() -> None:
    # One agreeing item stands for 10, one that disagrees for 2: 10 / 12.
    found = weighted_share([pair(1, True, inclusion=0.1), pair(2, False, inclusion=0.5)])
    assert found.value == pytest.approx(10 / 12)


def test_pairs_of_one_item_are_no_independent_evidence() -> None:
    apart = weighted_share([pair(n, n % 2 == 0) for n in range(40)])
    together = weighted_share([pair(n // 4, n // 4 % 2 == 0) for n in range(40)])
    assert apart.value == together.value == 0.5
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_full_agreement_still_has_an_interval() -> None:
    found = weighted_share([pair(n, True) for n in range(50)])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(proportion_interval(50, 50).low)
    assert math.isnan(weighted_share([]).value)


def test_an_estimate_from_the_doubtful_is_right_for_all_and_its_interval_covers() -> None:
    draw = random.Random(0)
    items = [Reviewable(f"i{n}", "", draw.uniform(0.5, 1.0)) for n in range(3000)]
    agrees = {item.item_id: draw.random() < item.confidence for item in items}
    truth = sum(agrees.values()) / len(agrees)
    estimates, plain, covered = [], [], 0
    for seed in range(200):
        chosen = choose(items, "unsure", size=150, threshold=0.0, seed=seed)
        sample = [Compared(c.item_id, c.inclusion, 1, 1 if agrees[c.item_id] else -1, 0.8) for c in chosen]
        found = weighted_share(sample)
        estimates.append(found.value)
        plain.append(sum(each.agrees for each in sample) / len(sample))
        covered += found.low <= truth <= found.high
    assert sum(estimates) / 200 == pytest.approx(truth, abs=0.01)
    assert sum(plain) / 200 < truth - 0.04  # what counting heads would say
    assert covered >= 180


def test_ties_are_halves_and_decided_pairs_stand_apart() -> None:
    compared = [
        Compared("a", 1.0, 1, 1, 0.95),
        Compared("b", 1.0, -1, 1, 0.55),
        Compared("c", 1.0, 0, 1, 0.5),
        Compared("d", 1.0, 0, 0, 0.5),
    ]
    assert [each.agrees for each in compared] == [1.0, 0.0, 0.5, 1.0]
    found = Agreement.of(compared)
    assert (found.decided.value, found.decided.count) == (0.5, 2)
    assert found.with_ties.value == pytest.approx(2.5 / 4)
    assert [(level.low, level.agreement.value) for level in found.levels] == [(0.5, 0.0), (0.9, 1.0)]
    assert found.lines()[0].startswith("people agree with the judge on 0.500 (95% interval")
