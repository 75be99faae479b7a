"""Choosing the best of several responses: for training on them, and for answering."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.pipeline.evaluation import best_of_n, shown_parts, total_score
from rlhf_ray.pipeline.raft import best_of_each
from rlhf_ray.records import Rollout, Score


def rollout(name: str) -> Rollout:
    ids = np.array([1, 2], dtype=np.int32)
    zeros = np.zeros(2, dtype=np.float32)
    return Rollout(name, name[0], 0, ids, ids, zeros, np.zeros(2, dtype=np.int32), "stop", 0)


def graded(name: str, score: float | None, kl: float = 0.5) -> GradedResponse:
    return GradedResponse(name[0], "", "?", name, {"gold": 0.0}, score, kl, 2, True)


def test_the_best_of_each_prompt_is_kept_with_the_mean_of_all() -> None:
    sampled = [(rollout(name), score) for name, score in (("a0", 1.0), ("a1", 3.0), ("b0", 2.0), ("b1", 2.0))]
    found = [(best.rollout_id, score, mean) for best, score, mean in best_of_each(sampled, 2)]
    assert found == [("a1", 3.0, 2.0), ("b0", 2.0, 2.0)]


def test_what_has_no_score_is_never_the_best_and_a_prompt_without_any_is_left_out() -> None:
    names = (("a0", None), ("a1", -3.0), ("b0", None), ("b1", None))
    found = best_of_each([(rollout(name), score) for name, score in names], 2)
    assert [(best.rollout_id, score, mean) for best, score, mean in found] == [("a1", -3.0, -3.0)]


def test_an_answer_is_the_best_of_n_and_its_kl_what_choosing_costs_at_most() -> None:
    rows = [graded("a0", 0.1), graded("a1", 0.9), graded("a2", None), graded("b0", None), graded("b1", None)]
    chosen = best_of_n([*rows, graded("b2", None)], 3)
    assert [response.response_text for response in chosen] == ["a1", "b0"]
    assert [response.kl for response in chosen] == pytest.approx([math.log(3) - 2 / 3] * 2)
    assert chosen[0] == replace(rows[1], kl=chosen[0].kl)


def test_a_score_is_what_is_earned_on_the_way_and_at_the_end() -> None:
    assert total_score(Score(1.5, step_rewards=((0, 0.25), (1, -1.0)))) == pytest.approx(0.75)
    assert total_score(Score(math.nan, failed="timeout")) is None


def test_axes_and_disagreement_are_shown_and_single_members_are_not() -> None:
    parts = {"learned": 1.0, "learned.helpful": 0.5, "learned.std": 0.25, "learned.member_1": 0.9, "short": 1.0}
    assert shown_parts(Score(2.0, parts)) == {"learned.helpful": 0.5, "learned.std": 0.25}
