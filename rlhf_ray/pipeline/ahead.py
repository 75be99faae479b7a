"""Batches that were collected ahead of their step, as a part of a run's state: a resumed run trains on the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_ray.checkpoint import SavedState
from rlhf_ray.collecting import Collected
from rlhf_ray.records import GenerationRequest, Rollout, RolloutSummary
from rlhf_ray.roles import Ref, ScoredShard
from rlhf_ray.rollout_store import (
    SavedShard,
    SavedStep,
    StepRecord,
    StepWriter,
    score_of,
    score_to_json,
    step_directory,
)

AHEAD = "ahead"  # the directory in a state
BATCHES = "batches"  # in the driver's part: what is known of them besides their rollouts
Fetch = Callable[[Ref], Awaitable[Any]]
Put = Callable[[Any], Awaitable[Ref]]


async def write_batch(root: Path, batch: Collected, fetch: Fetch) -> None:
    """Write a batch's rollouts, references and scores below ``root``, one shard after the other."""
    writer = StepWriter(step_directory(root, batch.step))
    for shard in batch.sampled:
        rollouts, reference = await fetch(shard.rollouts), await fetch(shard.ref_logprobs)
        writer.add(SavedShard(tuple(rollouts), reference, shard.scores))
    writer.finish(StepRecord(batch.step, kl_coef=0.0))


def batches_to_json(batches: Sequence[Collected]) -> list[dict[str, object]]:
    """What :func:`write_batch` leaves out."""
    return [
        {
            "step": batch.step,
            "rounds": batch.rounds,
            "seconds": dict(batch.seconds),
            "greedy": {
                prompt: [asdict(summary), score_to_json(score)] for prompt, (summary, score) in batch.greedy.items()
            },
        }
        for batch in batches
    ]


async def read_batches(saved: SavedState, put: Put) -> list[Collected]:
    """The batches of a state, their blocks put where ``put`` puts them. Raises DataError for a damaged one."""
    known: Sequence[Mapping[str, Any]] = saved.driver.get(BATCHES, ())
    return [await _read(saved.directory / AHEAD, batch, put) for batch in known]


async def _read(root: Path, known: Mapping[str, Any], put: Put) -> Collected:
    step = SavedStep(step_directory(root, known["step"]))
    shards: list[ScoredShard] = []
    requests: dict[str, GenerationRequest] = {}
    for saved in step.shards():
        summaries = tuple(rollout.summary for rollout in saved.rollouts)
        rollouts, reference = await put(saved.rollouts), await put(saved.reference)
        shards.append(ScoredShard(summaries, rollouts, reference, saved.scores))
        requests |= {rollout.rollout_id: _request(rollout) for rollout in saved.rollouts}
    greedy = {
        prompt: (RolloutSummary(**summary), score_of(score)) for prompt, (summary, score) in known["greedy"].items()
    }
    return Collected(known["step"], tuple(shards), requests, greedy, known["rounds"], known["seconds"])


def _request(rollout: Rollout) -> GenerationRequest:
    return GenerationRequest(rollout.rollout_id, rollout.prompt_id, rollout.order, rollout.prompt_ids, rollout.seed)
