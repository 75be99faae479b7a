"""Which scored rollouts are trained on, and with which scores."""

from __future__ import annotations

import math
import statistics

import pytest

from rlhf_ray.algo.running import RunningMoments
from rlhf_ray.errors import RewardError
from rlhf_ray.records import RolloutSummary, Score
from rlhf_ray.roles import ScoredShard
from rlhf_ray.selection import (
    earned_on_the_way,
    kept_where,
    normalised,
    num_groups,
    pairs_of,
    scaled,
    updated_moments,
    with_signal,
    without_failed,
)

FAILED = Score(math.nan, failed="judge: timed out")


def summary(order: int, prompt: str) -> RolloutSummary:
    return RolloutSummary(f"{prompt}/{order}", prompt, order, 2, 3, "stop", 1)


def shard(first: int, prompts: str, *scores: float | Score) -> ScoredShard:
    """Rollouts of the prompts that are named by letters, their orders counted from ``first``."""
    summaries = tuple(summary(first + i, prompt) for i, prompt in enumerate(prompts))
    made = tuple(score if isinstance(score, Score) else Score(float(score)) for score in scores)
    return ScoredShard(summaries, f"rollouts {first}", f"references {first}", made)


def orders(shards: list[ScoredShard]) -> list[int]:
    return [summary.order for shard in shards for summary in shard.summaries]


def test_pairs_come_in_order_whatever_way_the_step_was_cut() -> None:
    whole = [shard(0, "aabb", 1, 2, 3, 4)]
    cut = [shard(2, "bb", 3, 4), shard(0, "aa", 1, 2)]
    assert pairs_of(cut) == pairs_of(whole)
    assert [score.total for _, score in pairs_of(cut)] == [1.0, 2.0, 3.0, 4.0]


def test_a_kept_rollout_keeps_its_score_and_its_place_in_the_object_store() -> None:
    kept = kept_where([shard(0, "aab", 1, 2, 3), shard(3, "b", 4)], lambda s, _: s.order in (1, 2))
    assert [(s.rollouts, s.ref_logprobs) for s in kept] == [("rollouts 0", "references 0")]
    assert [(s.order, score.total) for s, score in pairs_of(kept)] == [(1, 2.0), (2, 3.0)]


def test_failed_rollouts_are_left_out_up_to_the_limit() -> None:
    shards = [shard(0, "aabb", 1, FAILED, 3, 4)]
    assert orders(without_failed(shards, 0.25)) == [0, 2, 3]
    with pytest.raises(RewardError, match=r"^1 of 4 rollouts .* \(0\.2\); the first: judge: timed out$"):
        without_failed(shards, 0.2)
    assert without_failed([shard(0, "a", FAILED)], 1.0) == []
    assert orders(without_failed([shard(0, "a", 1)], 0.0)) == [0]


def test_a_group_has_a_signal_where_its_responses_score_differently_in_whatever_shards() -> None:
    shards = [shard(0, "aab", 1, 1, 2), shard(3, "bcd", 3, 5, 6), shard(6, "cd", 5, 6.5)]
    assert orders(with_signal(shards)) == [2, 3, 5, 7]  # b and d
    assert num_groups(with_signal(shards)) == 2
    assert num_groups(shards) == 4
    assert with_signal([shard(0, "ab", 1, 2)]) == []  # groups of one teach nothing


def test_what_is_earned_on_the_way_counts_as_a_difference() -> None:
    early = Score(1.0, step_rewards=((0, 0.25), (2, 0.25)))
    assert earned_on_the_way(early) == 0.5
    assert orders(with_signal([shard(0, "aa", 1, early)])) == [0, 1]
    same = Score(0.5, step_rewards=((0, 1.0),))
    assert with_signal([shard(0, "aa", 1.5, same)]) == []


def test_scores_are_normalised_by_all_that_the_run_has_seen() -> None:
    steps = [[1.0, 4.0, 2.5], [-3.0, 0.5]]
    seen = RunningMoments()
    for number, step in enumerate(steps, start=1):
        shards = [shard(0, "a" * len(step), *step)]
        seen = updated_moments(seen, shards)
        so_far = [score for earlier in steps[:number] for score in earlier]
        expected = [(score - statistics.fmean(so_far)) / statistics.stdev(so_far) for score in step]
        assert [score.total for _, score in pairs_of(normalised(shards, seen))] == pytest.approx(expected, rel=1e-12)


def test_step_rewards_are_scaled_and_not_shifted() -> None:
    seen = RunningMoments(count=3, mean=10.0, squared_deviations=8.0)  # deviation 2
    found = scaled(Score(14.0, {"judge": 7.0}, step_rewards=((1, 3.0),)), seen)
    assert found == Score(2.0, {"judge": 7.0}, step_rewards=((1, 1.5),))


def test_while_all_scores_are_the_same_there_is_no_deviation_to_divide_by() -> None:
    shards = [shard(0, "aa", 0.1, 0.1)]
    seen = updated_moments(RunningMoments(), shards)
    assert [score.total for _, score in pairs_of(normalised(shards, seen))] == pytest.approx([0.0, 0.0], abs=1e-15)
    assert scaled(Score(1.1, step_rewards=((0, 2.0),)), seen).total == pytest.approx(1.0)
    assert scaled(Score(1.1, step_rewards=((0, 2.0),)), seen).step_rewards == ((0, 2.0),)
