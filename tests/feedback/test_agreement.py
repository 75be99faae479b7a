"""Chance-corrected agreement against published examples and hand computations."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlhf_ray.feedback.agreement import cohen_kappa, kappas, krippendorff_alpha, pair_values
from rlhf_ray.feedback.records import Judgement

# Krippendorff's own example of nominal data: four observers, twelve units, missing values; alpha is 0.743.
OBSERVERS = {
    "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}


def units(observers: dict[str, list[Any]]) -> dict[Any, dict[str, int]]:
    count = len(next(iter(observers.values())))
    return {
        unit: {name: said[unit] for name, said in observers.items() if said[unit] is not None} for unit in range(count)
    }


def test_alpha_is_that_of_krippendorff_s_example() -> None:
    assert krippendorff_alpha(units(OBSERVERS)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_one_for_perfect_agreement_and_nan_where_nobody_shares_a_unit() -> None:
    assert krippendorff_alpha(units({"a": [1, 0, 1], "b": [1, 0, 1]})) == 1.0
    assert krippendorff_alpha(units({"a": [1, 1], "b": [1, 1]})) == 1.0
    assert math.isnan(krippendorff_alpha(units({"a": [1, None], "b": [None, 1]})))


def test_alpha_is_below_zero_for_systematic_disagreement() -> None:
    # Coincidences: (0,1) and (1,0) four times each, n = 8: 1 - 8 / ((64 - 32) / 7) = -0.75.
    assert krippendorff_alpha(units({"a": [0, 1, 0, 1], "b": [1, 0, 1, 0]})) == pytest.approx(-0.75)


def test_kappa_takes_chance_away() -> None:
    # Cohen's table 20, 5, 10, 15: agreement 0.7, chance 0.5.
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(["y"] * 4, ["y"] * 4) == 1.0
    assert math.isnan(cohen_kappa([], []))
    with pytest.raises(ValueError, match="the same units, not 1 and 2"):
        cohen_kappa(["y"], ["y", "n"])


def test_rankings_are_compared_pair_by_pair_and_ties_are_a_value() -> None:
    said = [
        Judgement("i", "ann", ranks=(0, 1, 1)),
        Judgement("i", "bob", ranks=(0, 2, 1)),
        Judgement("i", "eve", verdict="skipped"),
        Judgement("j", "ann", ranks=(1, 0)),
    ]
    values = pair_values(said)
    assert values == {
        ("i", 0, 1): {"ann": -1, "bob": -1},
        ("i", 0, 2): {"ann": -1, "bob": -1},
        ("i", 1, 2): {"ann": 0, "bob": 1},
        ("j", 0, 1): {"ann": 1},
    }
    # Observed 2/3; chance (2/3)(2/3) + 0 + 0 = 4/9.
    assert kappas(values) == {("ann", "bob"): (pytest.approx((2 / 3 - 4 / 9) / (5 / 9)), 3)}
