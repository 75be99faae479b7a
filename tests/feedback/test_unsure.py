"""Which prompts a label is worth most for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.feedback.unsure import most_unsure, unsureness

scores = st.lists(st.floats(-30, 30), min_size=2, max_size=6)


def of_different(members: list[list[float]]) -> float:
    """What is measured where no response is that of another."""
    return unsureness(members, range(len(members[0])))


def entropy_of_pairs(members: list[list[float]]) -> float:
    """By the definition."""
    found = []
    for i in range(len(members[0])):
        for j in range(i + 1, len(members[0])):
            p = sum(1 / (1 + math.exp(scores[j] - scores[i])) for scores in members) / len(members)
            found.append(-sum(q * math.log(q) for q in (p, 1 - p) if q > 0))
    return sum(found) / len(found)


@given(scores, st.integers(1, 3))
def test_unsureness_is_the_mean_entropy_of_who_wins_a_pair(values: list[float], count: int) -> None:
    members = [[value * (member + 1) / 2 for value in values] for member in range(count)]
    assert of_different(members) == pytest.approx(entropy_of_pairs(members), abs=1e-9)


@given(scores, st.floats(-100, 100))
def test_a_constant_added_to_all_scores_changes_nothing(values: list[float], constant: float) -> None:
    assert of_different([[value + constant for value in values]]) == pytest.approx(of_different([values]), abs=1e-9)


def test_equal_scores_are_a_coin_and_far_ones_are_sure() -> None:
    assert of_different([[1.0, 1.0, 1.0]]) == pytest.approx(math.log(2))
    assert of_different([[0.0, 1000.0]]) == 0.0
    assert of_different([[1000.0, 0.0]]) == 0.0


def test_members_that_are_sure_of_opposites_know_nothing_together() -> None:
    assert of_different([[0.0, 50.0], [50.0, 0.0]]) == pytest.approx(math.log(2))


def test_of_two_responses_that_are_the_same_there_is_nothing_to_learn() -> None:
    assert unsureness([[1.0, 1.0, 1.0]], ["a", "a", "b"]) == pytest.approx(2 / 3 * math.log(2))
    assert unsureness([[1.0, 1.0]], ["a", "a"]) == 0.0


def test_one_response_makes_no_pair() -> None:
    with pytest.raises(ValueError, match="1 scores make no pair"):
        of_different([[0.3]])


def test_the_most_unsure_keep_their_order_and_of_equal_ones_the_first_are_taken() -> None:
    assert most_unsure([0.1, 0.6, 0.2, 0.6, 0.5], 3) == [1, 3, 4]
    assert most_unsure([0.5, 0.5, 0.5], 2) == [0, 1]
    assert most_unsure([0.5], 3) == [0]
