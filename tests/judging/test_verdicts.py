"""Both orders are asked: what depends on the order cancels or ties."""

from __future__ import annotations

import re

import pytest

from rlhf_ray.config.judge import LAST_VERDICT
from rlhf_ray.judging.questions import Answer, Usage
from rlhf_ray.judging.verdicts import Opinion, ranks_of, read_answer
from tests.judging.made_up import masses

PATTERN = re.compile(LAST_VERDICT)


def said(text: str) -> float | None:
    return read_answer(Answer(text, Usage()), PATTERN, 0.05)


def test_a_verdict_in_text_is_the_last_one_that_is_named() -> None:
    assert said("A") == 1.0
    assert said("Answer A is short, but b is true. So: B.") == 0.0
    assert said("They are equal: tie") == 0.5
    assert said("Neither of the two") is None
    assert said("") is None
    assert said("Because Bananas") is None  # letters inside words are no verdict


def test_a_verdict_pattern_may_be_anyone_s_own() -> None:
    pattern = re.compile(r"\[\[(A|B|C)\]\]")
    assert read_answer(Answer("A is ... [[B]]", Usage()), pattern, 0.0) == 0.0
    assert read_answer(Answer("[[C]]", Usage()), pattern, 0.0) == 0.5
    assert read_answer(Answer("A", Usage()), pattern, 0.0) is None


def test_probability_mass_is_shared_between_the_two_verdicts_alone() -> None:
    answer = Answer("A", Usage(), {"A": 0.3, "B": 0.1})
    assert read_answer(answer, PATTERN, 0.05) == pytest.approx(0.75)
    assert read_answer(answer, PATTERN, 0.5) is None  # most of the mass is on something else
    assert read_answer(Answer("", Usage(), masses(0.5, 0.0)), PATTERN, 0.0) is None


def test_a_constant_lean_to_the_first_place_cancels_in_the_soft_label() -> None:
    # The judge believes 0.7 and adds 0.2 to whatever stands first: 0.9 forward; backward A has 0.3 + 0.2.
    opinion = Opinion.of([0.9, 0.5])
    assert opinion.by_order == (0.9, 0.5)
    assert opinion.probability == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("readings", "consistent", "tie", "vote"),
    [
        ([0.9, 0.2], True, -1, -1),  # both orders: the first
        ([0.2, 0.9], True, 1, 1),
        ([1.0, 1.0], False, 0, 0),  # always A: the orders disagree, and by the mean too
        ([0.9, 0.6], False, 0, -1),  # 0.9 and 0.4: disagree; the mean 0.65 is for the first
        ([0.5, 0.1], False, 0, -1),  # one order has no opinion
        ([0.5, 0.5], True, 0, 0),  # neither has
        ([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], True, -1, -1),  # votes: forward 1 0 1, backward turned 1 1 0
    ],
)
def test_orders_that_disagree_tie_or_vote(readings: list[float], consistent: bool, tie: int, vote: int) -> None:
    opinion = Opinion.of(readings)
    assert opinion.is_consistent is consistent
    assert (opinion.outcome("tie"), opinion.outcome("vote")) == (tie, vote)


def test_a_pair_needs_a_readable_answer_in_each_order() -> None:
    assert Opinion.of([0.9, None]).outcome("vote") is None
    assert Opinion.of([None, 0.1]).probability is None
    assert Opinion.of([0.9, 0.3, None, None]).probability == pytest.approx(0.8)


def test_each_order_has_half_the_weight_however_many_of_its_answers_could_be_read() -> None:
    assert Opinion.of([1.0, None, 1.0, None, 1.0, 0.6]).probability == pytest.approx((1.0 + 0.4) / 2)


def test_ranks_count_points_of_a_tournament() -> None:
    assert ranks_of({(0, 1): -1}, 2) == (0, 1)
    assert ranks_of({(0, 1): 0}, 2) == (0, 0)
    # 0 beats 1, 1 beats 2, 2 beats 0: a circle ties all.
    assert ranks_of({(0, 1): -1, (1, 2): -1, (0, 2): 1}, 3) == (0, 0, 0)
    # 1 beats both (2 points), 0 and 2 tie (half a point each).
    assert ranks_of({(0, 1): 1, (1, 2): -1, (0, 2): 0}, 3) == (1, 0, 1)
