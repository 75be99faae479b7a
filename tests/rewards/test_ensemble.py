"""What members of an ensemble say becomes one score, and how far they are apart says how much it is worth."""

from __future__ import annotations

import math

import pytest

from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Graded, Score
from rlhf_ray.rewards.combine import combine
from rlhf_ray.rewards.ensemble import combine_members, member_scores

APART = math.sqrt(2)  # the deviation of 1 and 3


def scored(*members: float, penalty: float = 0.0) -> Score:
    graded = combine_members([Graded(value) for value in members], penalty=penalty)
    return combine({"learned": [graded]}, weights={"learned": 2.0}, lengths=[3])[0]


def test_the_score_is_the_mean_less_the_penalty_on_the_deviation() -> None:
    answers = [Graded(1.0, parts={"helpful": 0.0}), Graded(3.0, parts={"helpful": 1.0})]
    graded = combine_members(answers, penalty=0.5)
    assert graded.score == pytest.approx(2.0 - 0.5 * APART)
    assert graded.parts == {"helpful": 0.5, "member_1": 1.0, "member_2": 3.0, "std": pytest.approx(APART)}


def test_one_member_alone_is_taken_as_it_is() -> None:
    alone = Graded(1.0, parts={"helpful": 0.5})
    assert combine_members([alone], penalty=3.0) is alone


def test_what_an_ensemble_is_made_of_stands_beside_its_score_and_is_in_no_sum() -> None:
    score = scored(1.0, 3.0)
    assert score.total == 4.0
    assert score.parts["learned"] == 2.0
    assert score.parts["learned.std"] == pytest.approx(APART)
    assert member_scores(score, "learned") == [1.0, 3.0]


def test_a_source_without_members_is_its_only_one() -> None:
    assert member_scores(scored(0.25), "learned") == [0.25]


def test_a_member_without_a_score_is_an_error() -> None:
    with pytest.raises(RlhfError, match="a member of an ensemble gave no score"):
        combine_members([Graded(1.0), Graded(None)], penalty=0.0)
