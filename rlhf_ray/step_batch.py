"""What a step is trained on, chosen from what was collected for it; and what can be said of it without its tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_ray.algo.running import RunningMoments
from rlhf_ray.collecting import Collected, PhaseClock
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.records import RolloutSummary, Score
from rlhf_ray.roles import ScoredShard
from rlhf_ray.selection import (
    earned_on_the_way,
    kept_where,
    normalised,
    num_tokens,
    pairs_of,
    scaled,
    scored_shards,
    updated_moments,
    with_signal,
    without_failed,
)
from rlhf_ray.stages.ppo_plan import shaped_scores


@dataclass(frozen=True)
class StepBatch:
    """A step's rollouts: all that were collected, and those that are trained on."""

    collected: Collected
    trained: tuple[ScoredShard, ...]
    baselines: Mapping[str, float]  # ReMax: by prompt, the score of its greedy response

    @property
    def sampled(self) -> tuple[ScoredShard, ...]:
        return self.collected.sampled

    @property
    def num_trained(self) -> int:
        return sum(len(shard.summaries) for shard in self.trained)

    @property
    def oldest_version(self) -> int:
        """Of the weights that sampled any token that is trained on."""
        return min(summary.policy_version for shard in self.trained for summary in shard.summaries)


def chosen(
    collected: Collected, config: PpoConfig, moments: RunningMoments, max_failed_fraction: float
) -> tuple[StepBatch, RunningMoments]:
    """What to train on, and the moments of all scores of the run, those of this step included.

    Raises RewardError where too many rollouts could not be scored.
    """
    trained = without_failed(collected.sampled, max_failed_fraction)
    if config.advantages == "remax":
        trained = kept_where(trained, lambda summary, _: summary.prompt_id in collected.greedy)
    informative = with_signal(trained) if config.filter.enabled else trained
    if sum(len(shard.summaries) for shard in informative) >= config.num_minibatches:
        trained = informative  # else groups without signal fill up: they weigh nothing
    if config.reward.normalise_scores:
        moments = updated_moments(moments, scored_shards(collected.sampled))
        trained = normalised(trained, moments)
    baselines = {prompt: _baseline(*answer, config, moments) for prompt, answer in collected.greedy.items()}
    return StepBatch(collected, tuple(trained), baselines), moments


def _baseline(summary: RolloutSummary, score: Score, config: PpoConfig, moments: RunningMoments) -> float:
    """What a greedy response earns, on the scale of the scores that are trained on."""
    if config.reward.normalise_scores:
        score = scaled(score, moments)
    return shaped_scores([summary], [score.total], config)[0] + earned_on_the_way(score)


def summarise(batch: StepBatch, policy_version: int) -> dict[str, float]:
    """What summaries and scores alone say about a step: the same bits however the step was cut into shards."""
    pairs = pairs_of(scored_shards(batch.sampled))  # in order: a floating-point sum depends on the order of its terms
    summaries = [summary for summary, _ in pairs]
    scores = np.array([score.total for _, score in pairs], dtype=np.float64)
    sources = sorted({source for _, score in pairs for source in score.parts})
    num_sampled = sum(len(shard.summaries) for shard in batch.sampled)
    return {
        "ppo/score_mean": float(scores.mean()),
        "ppo/score_std": float(scores.std()),
        **{f"reward/{s}": float(np.mean([score.parts[s] for _, score in pairs if s in score.parts])) for s in sources},
        "ppo/failed_fraction": 1.0 - len(pairs) / num_sampled,
        "ppo/trained_fraction": batch.num_trained / num_sampled,
        "ppo/sampling_rounds": float(batch.collected.rounds),
        "ppo/response_length": float(np.mean([s.response_length for s in summaries])),
        "ppo/finished_fraction": float(np.mean([s.finish_reason == "stop" for s in summaries])),
        **num_tokens(batch.sampled, batch.trained),
        "ppo/policy_version": float(policy_version),
        "ppo/staleness": float(policy_version - min(s.policy_version for s in summaries)),
        "ppo/staleness_mean": float(policy_version - np.mean([s.policy_version for s in summaries])),
    }


def timing(batch: StepBatch, clock: PhaseClock) -> dict[str, float]:
    """``time/<phase>`` in seconds, and the rates that follow from them.

    ``generate`` and ``score`` are of the batch, whenever it was collected; the others are of the step.
    """
    sampled = sum(s.response_length for shard in batch.sampled for s in shard.summaries)
    total = sampled + sum(s.prompt_length for shard in batch.sampled for s in shard.summaries)
    trained = sum(s.prompt_length + s.response_length for shard in batch.trained for s in shard.summaries)
    seconds = {**batch.collected.seconds, **clock.seconds}
    step = time.perf_counter() - clock.begun
    return {
        **{f"time/{name}": value for name, value in seconds.items()},
        "time/step": step,
        "time/tokens_per_second": total / step,
        "time/generate_tokens_per_second": sampled / max(seconds["generate"], 1e-9),
        "time/update_tokens_per_second": trained / max(seconds["update"], 1e-9),
    }
