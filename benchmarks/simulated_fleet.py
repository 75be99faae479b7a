"""Engines, servers and a trainer that take as long as measured ones and compute nothing, on nodes that fail.

They stand where actors stand: who gets which shard, who is lost, replaced and counted is decided by the real code.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray.exceptions import ActorDiedError

from actors.generators import GeneratorGroup
from actors.membership import Started
from benchmarks.simulated_accounts import Stopwatch
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import GenerationRequest, RolloutSummary, SamplingSettings, Score
from rlhf_ray.roles import Ref, RolloutShard, SyncReport


@dataclass(frozen=True)
class Measured:
    """What recorded runs took: response lengths by percentile; the other lists hold a number a step."""

    source: str
    response_lengths: tuple[float, ...]  # tokens; percentiles 0 to 100
    generate_tokens_per_second: tuple[float, ...]
    update_seconds: tuple[float, ...]
    score_seconds: tuple[float, ...]
    sync_seconds: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> Measured:
        return cls(**{k: v if isinstance(v, str) else tuple(v) for k, v in json.loads(path.read_text()).items()})


@dataclass(frozen=True)
class Scale:
    """The sizes that are simulated: means, around which everything varies as it did when it was measured."""

    response_length: float = 512.0
    tokens_per_second: float = 1500.0  # of one engine
    update_s: float = 20.0
    score_s: float = 1.0
    sync_s: float = 2.0
    node_start_s: float = 240.0  # until a node that was lost is there again and its engine has loaded


@dataclass(frozen=True)
class Faults:
    """``deaths_per_node_hour`` of nodes; ``hung_share`` of them do not end but stop answering."""

    deaths_per_node_hour: float = 0.0
    hung_share: float = 0.1


class World:
    """What the parts share: the measured spreads, the scale, chance with a seed, and the clock of their own CPU."""

    def __init__(self, measured: Measured, scale: Scale, *, seed: int) -> None:
        self.scale = scale
        self.random = random.Random(seed)
        self.stopwatch = Stopwatch()
        lengths = np.asarray(measured.response_lengths)
        self._percentiles = [max(1, round(scale.response_length * x / lengths.mean())) for x in lengths]
        self.grow(1.0)
        self._spreads = {
            "rate": _relative(measured.generate_tokens_per_second),
            "update": _relative(measured.update_seconds),
            "score": _relative(measured.score_seconds),
            "sync": _relative(measured.sync_seconds),
        }

    def varied(self, name: str, mean: float) -> float:
        return mean * self.random.choice(self._spreads[name])

    def grow(self, factor: float) -> None:
        """The load: from now on the policy's responses are ``factor`` times as long as at first."""
        self.length_factor = factor
        self._lengths = [max(1, round(length * factor)) for length in self._percentiles]

    def lengths(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """By the seed alone, as a response is."""
        lengths, count = self._lengths, len(self._lengths)
        return [lengths[request.seed % count] for request in requests]


def _relative(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [value / mean for value in values]


class Engine:
    """A generator's handle. Shards share the engine's rate, each as it was when the shard came."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = asyncio.get_running_loop()
        self._open: dict[asyncio.Future[Any], asyncio.TimerHandle] = {}
        self.rate = world.varied("rate", world.scale.tokens_per_second)
        self.version = 0
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.hung = False
        self.generate = self

    def options(self, **_: Any) -> Engine:
        return self

    def remote(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> tuple[Ref, asyncio.Future[tuple[RolloutSummary, ...]]]:
        with self._world.stopwatch:
            answer: asyncio.Future[tuple[RolloutSummary, ...]] = self._loop.create_future()
            lengths = self._world.lengths(requests)
            seconds = sum(lengths) * (len(self._open) + 1) / self.rate
            self._open[answer] = self._loop.call_later(seconds, self._answer, answer, requests, lengths)
            return object(), answer

    def _answer(
        self,
        answer: asyncio.Future[tuple[RolloutSummary, ...]],
        requests: Sequence[GenerationRequest],
        lengths: list[int],
    ) -> None:
        self._open.pop(answer, None)
        if self.hung or answer.done():
            return
        with self._world.stopwatch:
            found = [
                RolloutSummary(r.rollout_id, r.prompt_id, r.order, len(r.prompt_ids), length, "stop", self.version)
                for r, length in zip(requests, lengths, strict=True)
            ]
            answer.set_result(tuple(found))

    def dies(self) -> None:
        error = ActorDiedError()
        for answer, timer in self._open.items():
            timer.cancel()
            if not answer.done():
                answer.set_exception(error)
        self._open.clear()
        if not self.ended.done():
            self.ended.set_exception(error)

    async def stop(self) -> None:
        for timer in self._open.values():
            timer.cancel()
        self._open.clear()


class Nodes:
    """Starts engines, each on a node of its own, and lets nodes fail."""

    def __init__(self, world: World, faults: Faults) -> None:
        self._world = world
        self._faults = faults
        self._living: dict[str, Engine] = {}
        self.deaths = 0
        self.hangs = 0

    def first(self, count: int) -> list[Started]:
        return [self._started(f"generator {number}") for number in range(count)]

    async def start(self, name: str, model_path: str) -> Started:
        await asyncio.sleep(self._world.varied("sync", self._world.scale.node_start_s))
        return self._started(name)

    def _started(self, name: str) -> Started:
        engine = self._living[name] = Engine(self._world)

        async def stop() -> None:
            self._living.pop(name, None)
            await engine.stop()

        return Started(engine, name=name, node=f"node of {name}", ended=engine.ended, stop=stop)

    async def fail(self) -> None:
        """For ever: the next fault comes after a time that is exponentially distributed, wherever it hits."""
        rate = self._faults.deaths_per_node_hour / 3600.0
        while rate > 0:
            await asyncio.sleep(self._world.random.expovariate(rate * max(1, len(self._living))))
            if not self._living:
                continue
            name = self._world.random.choice(list(self._living))
            if self._world.random.random() < self._faults.hung_share:
                self.hangs += not self._living[name].hung
                self._living[name].hung = True
            else:
                self.deaths += 1
                self._living.pop(name).dies()

    def engine(self, name: str) -> Engine | None:
        return self._living.get(name)


class Reference:
    async def logprobs(self, shard: RolloutShard) -> Ref:
        return None


class RewardModel:
    def __init__(self, world: World) -> None:
        self._world = world

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        await asyncio.sleep(self._world.varied("score", self._world.scale.score_s))
        with self._world.stopwatch:
            scores = [summary.response_length % 7 / 7.0 for summary in shard.summaries]
            return tuple([Score(score, {"reward_model": score}) for score in scores])


class TrainerRanks:
    """A trainer group under the real planner of steps: takes the time of an update and says what one says.

    An engine's time and an update's both grow with the responses: an update goes over the tokens that were sampled.
    """

    def __init__(self, world: World, num_ranks: int) -> None:
        self._world = world
        self.ranks = list(range(num_ranks))
        self.config = TrainingConfig(num_ranks=num_ranks, max_tokens_per_micro_batch=65536)

    async def update_with(self, works: Sequence[Any], blocks: Sequence[Sequence[Ref]]) -> MetricSums:
        await asyncio.sleep(self._world.varied("update", self._world.scale.update_s * self._world.length_factor))
        sums = MetricSums()
        for name in ("ppo/rollout_weights_squared", "ppo/rollout_weight_mean", "ppo/kl_per_response"):
            sums.add(name, 1.0, 1.0)
        sums.add("ppo/logprob_difference", 0.0, 1.0)
        return sums


class Weights:
    """A weight sync: every generator that is there gets the version, in the states of the real one."""

    def __init__(self, world: World, generators: GeneratorGroup, nodes: Nodes) -> None:
        self._world, self._generators, self._nodes = world, generators, nodes
        self._version = 0
        generators.members.catch_up = self.catch_up

    async def sync(self, version: int, *, waited_s: float | None = None) -> SyncReport:
        members = self._generators.members
        members.send_leavers()
        names = await members.to_sync()
        for name in names:
            members.syncs(name)
        await asyncio.sleep(self._world.varied("sync", self._world.scale.sync_s))
        self._version = version
        present = members.present(names)
        with self._world.stopwatch:
            for name in present:
                self._give(name)
        for name in present:
            members.serves(name, version)
        members.adjust()
        return SyncReport(version, "", num_bytes=0, seconds=0.0, fleet=self._generators.settle())

    async def catch_up(self, name: str) -> int | None:
        await asyncio.sleep(self._world.varied("sync", self._world.scale.sync_s))
        if not self._generators.members.is_catching_up(name):
            return None
        self._give(name)
        return self._version

    def _give(self, name: str) -> None:
        if (engine := self._nodes.engine(name)) is not None:
            engine.version = self._version
