"""Plain objects that satisfy roles.py: a PPO run in milliseconds, with every event written down.

The "policy" is one number. A response's length and score follow from its seed and from that number, so that a run that
lost any part of its state goes another way.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.driver import Driver, Metrics, Roles
from rlhf_ray.records import (
    AdaptersOff,
    GenerationRequest,
    Prompt,
    Rollout,
    RolloutSummary,
    SamplingSettings,
    Score,
)
from rlhf_ray.roles import Ref, RolloutShard, ScoredShard, SyncReport

Arrange = Callable[[list[list[GenerationRequest]]], list[list[GenerationRequest]]]


def as_they_are(shards: list[list[GenerationRequest]]) -> list[list[GenerationRequest]]:
    return shards


def reverse(shards: list[list[GenerationRequest]]) -> list[list[GenerationRequest]]:
    return shards[::-1]


def shuffled(shards: list[list[GenerationRequest]]) -> list[list[GenerationRequest]]:
    return random.Random(3).sample(shards, len(shards))


@dataclass(frozen=True)
class Update:
    """What the trainer was given in one step."""

    step: int
    pairs: tuple[tuple[RolloutSummary, Score], ...]
    baselines: Mapping[str, float]


def score_by_seed(summary: RolloutSummary, seed: int, weight: float) -> Score:
    return Score(weight + seed / 2**31)


class World:
    """What the fakes share: the trainer's weight, what each engine was last given, and everything that happened."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.requests: list[GenerationRequest] = []  # sampled ones; those at temperature 0 are kept apart
        self.greedy_requests: list[GenerationRequest] = []
        self.updates: list[Update] = []
        self.score = score_by_seed
        self.weight = 0.0
        self.served: tuple[int, float] | None = None
        self.lag = 0  # versions that the engine stays behind
        self.kl: float | None = None  # nats a response that the trainer observes; None: a number of its own
        self.logprob_difference = 0.0

    def note(self, event: str) -> None:
        self.events.append(event)


class FakeGenerator:
    """Gives shards of ``shard_size`` in the order that ``arrange`` makes of them; each waits for its turn."""

    def __init__(self, world: World, *, shard_size: int, arrange: Arrange) -> None:
        self._world, self._shard_size, self._arrange = world, shard_size, arrange

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        assert self._world.served is not None, "sampled before any weights were synced"
        version, weight = self._world.served
        self._world.note(f"generate with version {version}")
        greedy = settings.temperature == 0
        (self._world.greedy_requests if greedy else self._world.requests).extend(requests)
        shards = [list(requests[i : i + self._shard_size]) for i in range(0, len(requests), self._shard_size)]
        for number, shard in enumerate(self._arrange(shards), start=1):
            for _ in range(5):  # time enough for whoever was given the last one
                await asyncio.sleep(0)
            self._world.note(f"shard {number} of {len(shards)}")
            rollouts = tuple(self._rollout(request, version, weight) for request in shard)
            yield RolloutShard(tuple(rollout.summary for rollout in rollouts), rollouts)

    def _rollout(self, request: GenerationRequest, version: int, weight: float) -> Rollout:
        length = 1 + _choice(request) % 7
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            order=request.order,
            prompt_ids=request.prompt_ids,
            response_ids=np.full(length, 5, dtype=np.int32),
            rollout_logprobs=np.full(length, weight, dtype=np.float32),
            policy_versions=np.full(length, version - self._world.lag, dtype=np.int32),
            finish_reason="stop" if _choice(request) % 3 else "length",
            seed=_choice(request),
        )


def _choice(request: GenerationRequest) -> int:
    """What is sampled: by the seed, or (seed 0, at temperature 0) by the prompt alone."""
    return request.seed or int(request.prompt_ids[0]) * 7919 + 1


class FakeReference:
    def __init__(self, world: World) -> None:
        self._world = world

    async def logprobs(self, shard: RolloutShard) -> Ref:
        self._world.note("reference")
        return AdaptersOff()


class FakeRewardModel:
    def __init__(self, world: World) -> None:
        self._world = world

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        self._world.note("score")
        rows = zip(shard.summaries, shard.rollouts, strict=True)
        return tuple(self._world.score(summary, rollout.seed, _weight(rollout)) for summary, rollout in rows)


def _weight(rollout: Rollout) -> float:
    """Of the policy that sampled it."""
    return float(rollout.rollout_logprobs[0])


class FakeTrainer:
    """Moves its weight by the scores: by none of them alone, so that a lost or doubled rollout shows."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        self._world.note(f"update {step}")
        pairs = [pair for shard in shards for pair in zip(shard.summaries, shard.scores, strict=True)]
        self._world.updates.append(Update(step, tuple(pairs), dict(baselines)))
        for summary, score in pairs:
            gain = score.total - baselines.get(summary.prompt_id, 0.0)
            self._world.weight = 0.9 * self._world.weight + 0.1 * gain - 0.01 * kl_coef
        kl = 5.0 + self._world.weight if self._world.kl is None else self._world.kl
        return {"ppo/logprob_difference": self._world.logprob_difference, "ppo/kl_per_response": kl}

    async def save_state(self, directory: str, tag: str) -> None:
        await asyncio.sleep(0)
        (Path(directory) / tag).write_text(json.dumps(self._world.weight))

    async def load_state(self, directory: str, tag: str) -> None:
        self._world.weight = json.loads((Path(directory) / tag).read_text())

    def checkpointed(self, directory: str, tag: str, step: int) -> None: ...

    async def save(self, directory: str) -> None:
        self._world.note("save")


class FakeWeightSync:
    def __init__(self, world: World) -> None:
        self._world = world

    async def sync(self, version: int, *, waited_s: float | None = None) -> SyncReport:
        self._world.note(f"sync {version}")
        self._world.served = (version, self._world.weight)
        return SyncReport(version, "digest", num_bytes=8, seconds=0.0)


class FakePrompts:
    """Counts upwards, and begins again after ``num_prompts``."""

    def __init__(self, num_prompts: int = 1_000_000) -> None:
        self.num_prompts = num_prompts
        self.position = 0

    def next_prompts(self, count: int) -> list[Prompt]:
        numbers = [n % self.num_prompts for n in range(self.position, self.position + count)]
        self.position += count
        return [Prompt(f"p{n}", np.array([n, n], dtype=np.int32), order=i) for i, n in enumerate(numbers)]

    def state(self) -> Mapping[str, object]:
        return {"position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


def make_driver(
    config: PpoConfig,
    *,
    seed: int = 0,
    shard_size: int = 2,
    arrange: Arrange = as_they_are,
    world: World | None = None,
    **others: Any,
) -> tuple[Driver, World]:
    """A driver whose roles are all fakes of one world."""
    world = world or World()
    roles = Roles(
        generator=FakeGenerator(world, shard_size=shard_size, arrange=arrange),
        reference=FakeReference(world),
        reward_model=FakeRewardModel(world),
        trainer=FakeTrainer(world),
        weights=FakeWeightSync(world),
    )
    prompts = others.pop("prompts", FakePrompts())
    settings = SamplingSettings()
    return Driver(roles=roles, prompts=prompts, config=config, settings=settings, seed=seed, **others), world


async def run_driver(driver: Driver) -> list[dict[str, float]]:
    """Run to the end and return each step's metrics, those of time left out."""
    history: list[dict[str, float]] = []

    async def after_step(step: int, metrics: Metrics) -> None:
        history.append({name: value for name, value in metrics.items() if not name.startswith("time/")})

    await driver.run(after_step)
    return history
