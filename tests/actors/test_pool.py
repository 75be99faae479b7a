"""Actors that a stage has left serve the next one as if they had been started for it; nobody is kept who cannot."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from actors.crew import Crew
from actors.fleet import Fleet
from actors.monitor import Monitor
from actors.placement import Bundle, bundles
from actors.pool import Kind, Pool
from actors.pulse import Watched
from actors.room import reserve
from actors.scope import Scope
from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.records import GenerationRequest, Rollout, SamplingSettings
from rlhf_ray.stages.sft import SftSpec
from tests import tiny
from tests.clusters import local_ray
from tests.trainers import SupervisedCase

NUM_CPUS = 4


class Clerk(Watched):
    """Rests unless it is told not to."""

    def __init__(self) -> None:
        self.willing = True

    def process(self) -> int:
        return os.getpid()

    def refuse(self) -> None:
        self.willing = False

    def rest(self) -> bool:
        return self.willing


class Restless(Watched):
    """Cannot rest."""

    def process(self) -> int:
        return os.getpid()


# ------------------------------------------------------------------------------------------------ a pool and its crews
@asynccontextmanager
async def office(directory: Path) -> AsyncIterator[tuple[Pool, Monitor]]:
    pool, monitor = Pool(), Monitor(60.0, directory / "stacks")
    with local_ray(num_cpus=NUM_CPUS):
        await monitor.start()
        try:
            yield pool, monitor
        finally:
            pool.end_all()
            await monitor.close()


def desks(count: int, *, cpus: float = 1) -> tuple[Bundle, ...]:
    return bundles("clerk", count=count, cpus=cpus, gpus=0, device="cpu", field="clerk.num_replicas")


async def crew_of(monitor: Monitor, wanted: Sequence[Bundle], actor_class: type = Clerk) -> Crew:
    crew = Crew(
        actor_class=actor_class,
        environment={"MOOD": "calm"},
        wanted=wanted,
        group=await reserve(wanted, 60.0),
        max_concurrency=1,
        wait_for_room_s=60.0,
        monitor=monitor,
    )
    for place in range(len(wanted)):
        crew.start(place)
    return crew


def processes(crew: Crew) -> list[int]:
    import ray

    return [int(ray.get(actor.process.remote())) for actor in crew.actors]


def kind(wanted: Sequence[Bundle], actor_class: type = Clerk, mood: str = "calm") -> Kind:
    return Kind(actor_class, {"MOOD": mood}, tuple(wanted))


@pytest.mark.integration
async def test_who_rests_is_taken_by_those_who_want_the_same_and_by_nobody_else(tmp_path: Path) -> None:
    async with office(tmp_path) as (pool, monitor):
        crew = await crew_of(monitor, desks(2))
        there = processes(crew)
        await pool.give(crew, 30.0)
        assert len(pool) == 1
        taken = await pool.take(kind(desks(2)))
        assert taken is crew
        assert processes(taken) == there
        assert len(pool) == 0
        await pool.give(taken, 30.0)
        assert await pool.take(kind(desks(2), mood="other")) is None  # has the same names: the resting ones are ended
        assert len(pool) == 0


@pytest.mark.integration
async def test_nobody_is_kept_who_cannot_rest_or_is_gone(tmp_path: Path) -> None:
    import ray

    async with office(tmp_path) as (pool, monitor):
        await pool.give(await crew_of(monitor, desks(1), Restless), 30.0)
        assert len(pool) == 0
        unwilling = await crew_of(monitor, desks(1))
        await unwilling.members[0].refuse.remote()
        await pool.give(unwilling, 30.0)
        assert len(pool) == 0
        two = await crew_of(monitor, desks(2))
        ray.kill(two.members[1])
        await pool.give(two, 30.0)
        assert len(pool) == 0


@pytest.mark.integration
async def test_two_who_want_the_same_at_once_are_given_one_each(tmp_path: Path) -> None:
    async with office(tmp_path) as (pool, monitor):
        for _ in range(2):
            await pool.give(await crew_of(monitor, desks(1)), 30.0)
        found = await asyncio.gather(*(pool.take(kind(desks(1))) for _ in range(3)))
        assert sorted(crew is None for crew in found) == [False, False, True]
        assert len({id(crew) for crew in found}) == 3
        for crew in found:
            if crew is not None:
                crew.end_all()


@pytest.mark.integration
async def test_one_that_dies_at_rest_is_not_handed_on(tmp_path: Path) -> None:
    async with office(tmp_path) as (pool, monitor):
        crew = await crew_of(monitor, desks(1))
        (process,) = processes(crew)
        await pool.give(crew, 30.0)
        os.kill(process, signal.SIGKILL)
        assert await pool.take(kind(desks(1))) is None
        assert len(pool) == 0


@pytest.mark.integration
async def test_who_rests_makes_room_for_those_who_wait(tmp_path: Path) -> None:
    async with office(tmp_path) as (pool, monitor):
        await pool.give(await crew_of(monitor, desks(1, cpus=NUM_CPUS)), 30.0)
        others = bundles("other", count=1, cpus=1, gpus=0, device="cpu", field="other.num_replicas")
        assert await reserve(others, 60.0, pool.end_all)
        assert len(pool) == 0


# --------------------------------------------------------------------------------------------------------- real stages
CONTEXT = 64
BATCHES = 3


def config_in(directory: Path) -> RunConfig:
    return replace(
        RunConfig(),
        output_dir=str(directory),
        model=ModelConfig(max_length=CONTEXT),
        generation=GenerationConfig(dtype="float32", max_model_len=CONTEXT, kv_cache_memory_mb=64, cpus_per_engine=1),
        training=TrainingConfig(num_ranks=2, cpus_per_rank=0.5),
        reference=ServerConfig(cpus_per_replica=0.5),
    )


def checkpoint(directory: Path, seed: int) -> str:
    model = tiny.causal_model(seed=seed, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    return tiny.saved(model, directory / f"policy_{seed}")


async def sampled(scope: Scope, path: str) -> list[Rollout]:
    generators = await scope.generators(path)
    requests = [
        GenerationRequest(f"r{order}", f"p{order}", order, np.arange(3, 6 + order, dtype=np.int32), 7 + order)
        for order in range(4)
    ]
    shards = generators.generate(requests, SamplingSettings(temperature=1.0, max_tokens=8))
    rollouts = [rollout async for shard in shards for rollout in await scope.fetch(shard.rollouts)]
    return sorted(rollouts, key=lambda rollout: rollout.order)


async def fitted(scope: Scope, path: str) -> list[float]:
    config = config_in(Path(path).parent)
    spec = SftSpec(
        model_path=path,
        model=config.model,
        training=config.training,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        num_steps=BATCHES,
    )
    draw = np.random.default_rng(3)
    rows = [draw.integers(3, 60, size=12).astype(np.int32) for _ in range(4 * BATCHES)]
    sequences = [TokenSequence(row, np.arange(12) > 3) for row in rows]
    case = SupervisedCase(spec, [sequences[i::BATCHES] for i in range(BATCHES)])
    trainer = await scope.trainer(spec)
    return [(await trainer.update(case.works(2, step))).means()["sft/loss"] for step in range(BATCHES)]


async def referred(scope: Scope, path: str) -> tuple[float, ...]:
    servers = await scope.reference_servers(path, 1.0)
    return tuple(await servers.response_logprobs([TokenSequence(np.arange(3, 12, dtype=np.int32), np.arange(9) > 3)]))


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_stage_with_actors_of_the_last_one_finds_what_it_would_with_its_own(tmp_path: Path) -> None:
    one, other = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    fleet = Fleet(config_in(tmp_path), "cpu")
    names = ("generator 0", "reference 0", "trainer 0", "trainer 1")
    with local_ray():
        async with fleet.kept():
            first = await stage(fleet, one, names)
            second = await stage(fleet, other, names)
        fresh = await stage(fleet, other, names)  # not kept any more: actors of its own
    assert first.processes == second.processes
    assert not set(second.processes) & set(fresh.processes)
    assert second.found == fresh.found
    assert first.found != second.found


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_stage_that_fails_leaves_nobody(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    fleet = Fleet(config_in(tmp_path), "cpu")
    with local_ray():
        async with fleet.kept():
            with pytest.raises(UnluckyError) as unlucky:
                await unlucky_stage(fleet, path)
            async with fleet.scope() as scope:
                await referred(scope, path)
                assert process(scope, "reference 0") != unlucky.value.process


class UnluckyError(Exception):
    def __init__(self, process: int) -> None:
        self.process = process


async def unlucky_stage(fleet: Fleet, path: str) -> None:
    async with fleet.scope() as scope:
        await referred(scope, path)
        raise UnluckyError(process(scope, "reference 0"))


@dataclass(frozen=True)
class Stage:
    """What a stage has found, and who did the work."""

    found: object
    processes: Sequence[int]


async def stage(fleet: Fleet, path: str, names: Sequence[str]) -> Stage:
    async with fleet.scope() as scope:
        rollouts = await sampled(scope, path)
        assert all((rollout.policy_versions == 0).all() for rollout in rollouts)
        texts = [(rollout.response_ids.tolist(), rollout.rollout_logprobs.tolist()) for rollout in rollouts]
        found = (texts, await referred(scope, path), await fitted(scope, path))
        return Stage(found, [process(scope, name) for name in names])


def process(scope: Scope, name: str) -> int:
    found = scope.monitor.process(name)
    assert found is not None, f"{name} was never heard"
    return found
