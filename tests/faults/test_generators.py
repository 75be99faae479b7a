"""The first row of the fault matrix: a generator is lost, and the rollouts are those of a run that lost nobody.

One cluster, one trainer and one fleet of two engines for all rows; each row leaves a fleet of two behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio

from actors.fleet import Fleet
from actors.generators import GeneratorGroup
from actors.scope import Scope
from actors.weight_sync import FleetWeightSync
from rlhf_ray.config.faults import FaultsConfig
from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.records import GenerationRequest, Rollout, SamplingSettings
from tests import tiny
from tests.clusters import local_ray
from tests.faults.table import Stopwatch, fault_case
from tests.trainers import PPO, PpoCase

pytestmark = [
    pytest.mark.faults,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.asyncio(loop_scope="module"),
]
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
GENERATION = GenerationConfig(
    num_engines=2, cpus_per_engine=1.0, max_model_len=512, kv_cache_memory_mb=64, shard_size=4, max_num_seqs=16
)
SETTINGS = SamplingSettings(max_tokens=200, stop_token_ids=(1,))
SAME = "same rollouts as without"


def requests() -> list[GenerationRequest]:
    chance = np.random.default_rng(3)
    prompts = [chance.integers(2, tiny.VOCABULARY, 8).astype(np.int32) for _ in range(48)]
    return [GenerationRequest(f"r{i}", f"p{i}", i, prompt, seed=1000 + i) for i, prompt in enumerate(prompts)]


@dataclass
class World:
    scope: Scope
    generators: GeneratorGroup
    sync: FleetWeightSync | None = None
    version: int = 0

    async def sync_weights(self) -> None:
        assert self.sync is not None
        self.version += 1
        await self.sync.sync(self.version)

    async def sampled(self, *, meanwhile: Callable[[], None] | None = None) -> list[Rollout]:
        """Every rollout in order, each exactly once. ``meanwhile`` happens when the first shard has come."""
        rollouts: list[Rollout] = []
        async for shard in self.generators.generate(requests(), SETTINGS):
            if not rollouts and meanwhile is not None:
                meanwhile()
            rollouts += await self.scope.fetch(shard.rollouts)
        rollouts.sort(key=lambda r: r.order)
        assert [r.rollout_id for r in rollouts] == [f"r{i}" for i in range(48)]
        return rollouts

    @property
    def serving(self) -> dict[str, int]:
        members = self.generators.members.snapshot()
        return {m["name"]: m["version"] for m in members if m["state"] == "serving"}

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await asyncio.sleep(0.05)

    def kill(self, name: str) -> None:
        os.kill(self.process(name).pid, signal.SIGKILL)

    def kill_engine(self, name: str) -> None:
        """The process that computes, not the actor that speaks for it."""
        engines = self.process(name).children()
        assert engines, f"{name} has no process of its own for its engine"
        for engine in engines:
            engine.kill()

    def process(self, name: str) -> psutil.Process:
        found = self.scope.monitor.process(name)
        assert found is not None, f"{name} was never heard"
        return psutil.Process(found)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("generators")
    config = replace(
        RunConfig(),
        output_dir=str(directory),
        training=TrainingConfig(cpus_per_rank=0.5, max_tokens_per_micro_batch=512),
        generation=GENERATION,
        faults=FaultsConfig(max_restarts=100),
        ppo=PPO,
    )
    policy = tiny.saved(tiny.causal_model(**SHAPE), directory / "policy")
    critic = tiny.saved(tiny.scalar_model(**SHAPE), directory / "critic")
    case = PpoCase(policy, critic, (), references=(), training=config.training, ppo=config.ppo)
    with local_ray():
        async with Fleet(config, "cpu").scope() as scope:
            trainer, generators = await asyncio.gather(
                scope.ppo_trainer(case.spec, demonstrations=lambda step: ()), scope.generators(policy)
            )
            world = World(scope, generators, await scope.weight_sync(trainer, generators, [5, 6, 7, 8]))
            await world.sync_weights()
            yield world


def require_same(found: list[Rollout], wanted: list[Rollout]) -> None:
    """Tokens to the last one; log-probabilities to what another batch makes of the same sums."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.response_ids.tolist() == theirs.response_ids.tolist()
        assert (ours.seed, ours.finish_reason) == (theirs.seed, theirs.finish_reason)
        np.testing.assert_allclose(ours.rollout_logprobs, theirs.rollout_logprobs, atol=2e-5)


async def replaced(world: World, victim: str, watch: Stopwatch) -> None:
    """Wait until another one serves the version of all, in the victim's place."""
    await world.until(lambda: victim not in world.serving)
    watch.noticed()
    await world.until(lambda: len(world.serving) == 2)
    watch.recovered()
    assert set(world.serving.values()) == {world.version}


async def test_a_generator_that_dies_idle_is_replaced_and_serves_what_the_others_serve(world: World) -> None:
    wanted = await world.sampled()
    victim = min(world.serving)
    with fault_case("generator", "idle", SAME) as watch:
        world.kill(victim)
        watch.struck()
        await replaced(world, victim, watch)
        require_same(await world.sampled(), wanted)


@pytest.mark.parametrize("part", ["process", "engine"])
async def test_a_generator_that_dies_generating_changes_no_rollout(world: World, part: str) -> None:
    wanted = await world.sampled()
    victim = min(world.serving)
    kill = world.kill if part == "process" else world.kill_engine
    requeued = world.generators.snapshot()["requeued_shards"]
    with fault_case("generator" if part == "process" else "generator's engine", "generating", SAME) as watch:

        def strike() -> None:
            kill(victim)
            watch.struck()

        replacing = asyncio.ensure_future(replaced(world, victim, watch))
        require_same(await world.sampled(meanwhile=strike), wanted)
        await replacing
    assert world.generators.snapshot()["requeued_shards"] > requeued


async def test_a_sync_goes_on_without_a_generator_that_dies_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await world.sampled()
    victim = min(world.serving)
    assert world.sync is not None
    receive = world.sync._receive
    with fault_case("generator", "in a weight sync", "others serve the new version") as watch:

        async def strike_and_receive(offer: Any, names: Any) -> None:
            if watch.since_fault("struck") is None:
                watch.struck()
                world.kill(victim)
            await receive(offer, names)

        monkeypatch.setattr(world.sync, "_receive", strike_and_receive)
        await world.sync_weights()
        assert victim not in world.serving
        assert set(world.serving.values()) == {world.version}
        await replaced(world, victim, watch)
        require_same(await world.sampled(), wanted)  # the trainer has learned nothing meanwhile


async def test_the_fleet_grows_and_shrinks_while_it_samples(world: World) -> None:
    wanted = await world.sampled()
    with fault_case("nobody", "2 -> 3 -> 1 -> 2 generators", SAME) as watch:
        watch.struck()
        require_same(await world.sampled(meanwhile=lambda: world.generators.resize(3)), wanted)
        await world.until(lambda: len(world.serving) == 3)
        assert set(world.serving.values()) == {world.version}
        require_same(await world.sampled(meanwhile=lambda: world.generators.resize(1)), wanted)
        await world.until(lambda: len(world.generators.members.snapshot()) == 1)
        await world.sync_weights()
        world.generators.resize(2)
        await world.until(lambda: len(world.serving) == 2)
        watch.recovered()
        assert set(world.serving.values()) == {world.version}
