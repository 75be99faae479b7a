"""Sampling responses to text prompts outside of training: for comparison and for evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.metrics.progress import ProgressReport
from rlhf_ray.pipeline.context import Scope
from rlhf_ray.records import GenerationRequest, Prompt, Rollout, SamplingSettings, Score
from rlhf_ray.roles import Generator, RewardModel, RolloutShard
from rlhf_ray.seeds import request_seeds


@dataclass(frozen=True)
class FetchedShard:
    """Rollouts on the driver, and the shard that they came in."""

    shard: RolloutShard
    rollouts: tuple[Rollout, ...]


def requests_for(prompts: Sequence[Prompt], *, samples: int, seed: int, purpose: int) -> list[GenerationRequest]:
    """``samples`` requests a prompt. ``purpose`` keeps the seeds of different uses apart."""
    wanted = [(prompt, sample, prompt.order * samples + sample) for prompt in prompts for sample in range(samples)]
    seeds = request_seeds(seed, -purpose % 2**31, [order for _, _, order in wanted])
    return [
        GenerationRequest(f"{prompt.prompt_id}/{sample}", prompt.prompt_id, order, prompt.token_ids, own)
        for (prompt, sample, order), own in zip(wanted, seeds, strict=True)
    ]


async def sample(
    scope: Scope,
    generator: Generator,
    requests: Sequence[GenerationRequest],
    settings: SamplingSettings,
    bar: ProgressReport,
) -> list[FetchedShard]:
    """Sample all requests; shards in the order of their rollouts."""
    fetched = []
    async for shard in generator.generate(requests, settings):
        fetched.append(FetchedShard(shard, tuple(await scope.fetch(shard.rollouts))))
        bar.advance(len(shard.summaries))
    return sorted(fetched, key=lambda f: f.shard.summaries[0].order)


async def scored(reward_model: RewardModel, shards: Sequence[FetchedShard]) -> list[tuple[Rollout, Score]]:
    """Every rollout with its score, in the order of the shards."""
    scores = await asyncio.gather(*(reward_model.score(fetched.shard) for fetched in shards))
    return [
        pair for fetched, own in zip(shards, scores, strict=True) for pair in zip(fetched.rollouts, own, strict=True)
    ]
