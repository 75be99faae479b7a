"""Which of a step's scored rollouts are trained on, and with which scores: arithmetic on summaries and scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rlhf_ray.algo.running import RunningMoments
from rlhf_ray.errors import RewardError
from rlhf_ray.records import RolloutSummary, Score
from rlhf_ray.roles import ScoredShard


def pairs_of(shards: Sequence[ScoredShard]) -> list[tuple[RolloutSummary, Score]]:
    """Every rollout with its score, in order: the same whatever way the step was cut into shards."""
    pairs = [pair for shard in shards for pair in zip(shard.summaries, shard.scores, strict=True)]
    return sorted(pairs, key=lambda pair: pair[0].order)


def kept_where(shards: Sequence[ScoredShard], keep: Callable[[RolloutSummary, Score], bool]) -> list[ScoredShard]:
    """The shards without the rollouts that ``keep`` refuses; what is refused is never sent to a trainer's plan."""
    kept = []
    for shard in shards:
        pairs = [pair for pair in zip(shard.summaries, shard.scores, strict=True) if keep(*pair)]
        if pairs:
            summaries, scores = zip(*pairs, strict=True)
            kept.append(replace(shard, summaries=summaries, scores=scores))
    return kept


def finite_or_failed(scores: Sequence[Score]) -> tuple[Score, ...]:
    """The scores; one that holds a number that is not finite, and says of no failure, is a failure that says so.

    A reward model that gives NaN for one response is as good as one that gives nothing: the rollout is left out, counts
    in ``ppo/failed_fraction``, and with too many others ends the run (``rewards.max_failed_fraction``).
    """
    return tuple(_finite_or_failed(score) for score in scores)


def _finite_or_failed(score: Score) -> Score:
    if not score.step_rewards and math.isfinite(score.total):
        return score
    strange = [v for v in (score.total, *(v for _, v in score.step_rewards)) if not math.isfinite(v)]
    if score.failed or not strange:
        return score
    return replace(score, total=math.nan, failed=f"a score is {strange[0]}, which is no finite number", step_rewards=())


def scored_shards(shards: Sequence[ScoredShard]) -> list[ScoredShard]:
    """The shards without what could not be scored."""
    whole = [not any(score.failed for score in shard.scores) for shard in shards]
    if all(whole):
        return list(shards)
    return kept_where(shards, lambda _, score: not score.failed)


def without_failed(shards: Sequence[ScoredShard], max_failed_fraction: float) -> list[ScoredShard]:
    """The shards without the rollouts that could not be scored.

    Raises RewardError where more than ``max_failed_fraction`` of them could not.
    """
    scored = scored_shards(shards)
    if num_rollouts(scored) < num_rollouts(shards):
        require_scored([score for _, score in pairs_of(shards)], max_failed_fraction)
    return scored


def require_scored(scores: Sequence[Score], max_failed_fraction: float) -> None:
    """Raise RewardError where more than ``max_failed_fraction`` of a step's rollouts could not be scored."""
    failed = [score.failed for score in scores if score.failed]
    if len(failed) > max_failed_fraction * len(scores):
        raise RewardError(
            f"{len(failed)} of {len(scores)} rollouts of the step could not be scored, more than "
            f"rewards.max_failed_fraction ({max_failed_fraction:g}); the first: {failed[0]}"
        )


def with_signal(shards: Sequence[ScoredShard]) -> list[ScoredShard]:
    """The shards without the groups whose responses all score the same: from them nothing can be learned."""
    totals: dict[str, set[float]] = defaultdict(set)
    for summary, score in pairs_of(shards):
        totals[summary.prompt_id].add(score.total + earned_on_the_way(score))
    return kept_where(shards, lambda summary, _: len(totals[summary.prompt_id]) > 1)


def earned_on_the_way(score: Score) -> float:
    """What a response earns before its end."""
    return math.fsum(value for _, value in score.step_rewards)


def num_rollouts(shards: Sequence[ScoredShard]) -> int:
    return sum(len(shard.summaries) for shard in shards)


def num_groups(shards: Sequence[ScoredShard]) -> int:
    return len({summary.prompt_id for shard in shards for summary in shard.summaries})


def updated_moments(seen: RunningMoments, shards: Sequence[ScoredShard]) -> RunningMoments:
    """The moments of all scores of the run, those of ``shards`` included."""
    return seen.updated(torch.tensor([score.total for _, score in pairs_of(shards)], dtype=torch.float64))


def normalised(shards: Sequence[ScoredShard], seen: RunningMoments) -> list[ScoredShard]:
    """The shards with every score less the mean and over the deviation that ``seen`` says."""
    return [replace(shard, scores=tuple(scaled(score, seen) for score in shard.scores)) for shard in shards]


def scaled(score: Score, seen: RunningMoments) -> Score:
    """The score less the mean and over the deviation; while all scores were the same there is none to divide by."""
    scale = 1.0 / seen.std if seen.std > 1e-8 else 1.0
    steps = tuple((index, value * scale) for index, value in score.step_rewards)
    return replace(score, total=(score.total - seen.mean) * scale, step_rewards=steps)


def num_tokens(sampled: Sequence[ScoredShard], trained: Sequence[ScoredShard]) -> dict[str, float]:
    """How much was sampled and how much of it is trained on: what the ledger and the throughput count."""
    every = [summary for shard in sampled for summary in shard.summaries]
    used = [summary for shard in trained for summary in shard.summaries]
    return {
        "ppo/prompts": float(len({summary.prompt_id for summary in every})),
        "ppo/sampled_tokens": float(sum(summary.response_length for summary in every)),
        "ppo/trained_response_tokens": float(sum(summary.response_length for summary in used)),
        "ppo/trained_tokens": float(sum(summary.length for summary in used)),
    }
