"""The weighted sum of several sources, and what becomes of a rollout that one of them cannot score."""

from __future__ import annotations

import math

import pytest

from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Graded, Score
from rlhf_ray.rewards.combine import combine


def one(length: int = 4, **grades: Graded) -> Score:
    (score,) = combine({n: [g] for n, g in grades.items()}, weights={"a": 2.0, "b": -0.5}, lengths=[length])
    return score


def test_a_total_is_the_weighted_sum_and_parts_are_what_the_sources_said() -> None:
    grades = {"a": [Graded(1.0), Graded(0.25)], "b": [Graded(3.0), Graded(-1)]}
    assert combine(grades, weights={"a": 2.0, "b": -0.5}, lengths=[1, 1]) == (
        Score(0.5, {"a": 1.0, "b": 3.0}),
        Score(1.0, {"a": 0.25, "b": -1.0}),
    )


def test_step_rewards_are_weighted_and_those_at_one_token_are_added() -> None:
    score = one(a=Graded(0.0, ((3, 1.0), (0, 0.5))), b=Graded(1.0, ((3, 2.0),)))
    assert score.step_rewards == ((0, 1.0), (3, 1.0))
    assert score.total == -0.5


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Graded(None), "b: gave no score"),
        (Graded(math.nan), "b: the score is nan"),
        (Graded(-math.inf), "b: the score is -inf"),
        (Graded(1.0, failed="it rained"), "b: it rained"),
        (Graded(1.0, ((4, 1.0),)), "b: a step reward stands at token 4 of a response of 4"),
        (Graded(1.0, ((-1, 1.0),)), "b: a step reward stands at token -1 of a response of 4"),
        (Graded(1.0, ((1, math.inf),)), "b: the step reward at token 1 is inf"),
    ],
)
def test_a_rollout_that_one_source_cannot_score_has_no_total_and_says_why(bad: Graded, reason: str) -> None:
    score = one(a=Graded(1.0, ((0, 1.0),)), b=bad)
    assert math.isnan(score.total)
    assert (score.parts, score.failed, score.step_rewards) == ({"a": 1.0}, reason, ())


def test_every_source_that_failed_is_named_and_neighbours_are_unharmed() -> None:
    grades = {"a": [Graded(None), Graded(1.0)], "b": [Graded(None, failed="down"), Graded(2.0)]}
    failed, whole = combine(grades, weights={"a": 1.0, "b": 1.0}, lengths=[1, 1])
    assert failed.failed == "a: gave no score; b: down"
    assert (whole.total, whole.failed) == (3.0, "")


def test_a_source_that_answers_for_too_few_is_an_error_and_not_a_shifted_score() -> None:
    with pytest.raises(RlhfError, match="reward source 'b' answered for 1 of 2 rollouts"):
        combine({"a": [Graded(1.0)] * 2, "b": [Graded(1.0)]}, weights={"a": 1, "b": 1}, lengths=[1, 1])


def test_no_rollouts_have_no_scores() -> None:
    assert combine({"a": []}, weights={"a": 1.0}, lengths=[]) == ()
