"""Schedules with fakes: what happens beside what, how old a token may be, and that staleness 0 is ``sync`` itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rlhf_ray.config.algorithm import CorrectionConfig, FilterConfig, KlConfig
from rlhf_ray.config.ppo import PpoConfig, PpoRewardConfig
from rlhf_ray.driver import Driver
from rlhf_ray.errors import ConfigError, ContractError, RlhfError
from rlhf_ray.records import GenerationRequest, SamplingSettings
from rlhf_ray.roles import RolloutShard
from tests.fakes import FakePrompts, World, make_driver, run_driver

CONFIG = PpoConfig(
    num_steps=6,
    rollouts_per_step=8,
    num_minibatches=1,
    kl=KlConfig(controller="adaptive", coef=0.1, target=4.0, horizon=60),
    correction=CorrectionConfig(level="token"),
)
FAMILY: Mapping[str, PpoConfig] = {
    "plain": CONFIG,
    "normalised": replace(CONFIG, reward=PpoRewardConfig(normalise_scores=True)),
    "remax": replace(CONFIG, advantages="remax"),
    "filtered": replace(CONFIG, advantages="grpo", responses_per_prompt=2, filter=FilterConfig(enabled=True)),
}
ONE_STEP_OFF = replace(CONFIG, schedule="one_step_off")


def ahead(staleness: int, config: PpoConfig = CONFIG) -> PpoConfig:
    return replace(config, schedule="async", max_staleness=staleness)


class Stopped(Exception):  # noqa: N818
    """A run is stopped after a step."""


class Gated:
    """Stands before the generator: the batch of a step waits until it is let through."""

    def __init__(self, driver: Driver, world: World) -> None:
        self._generator, self._world = driver.collector.generator, world
        self.gates: dict[int, asyncio.Event] = {}
        driver.collector.generator = self

    def gate(self, step: int) -> asyncio.Event:
        return self.gates.setdefault(step, asyncio.Event())

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        step = int(requests[0].rollout_id.split("/")[0])
        self._world.note(f"batch {step} begins")
        shards = [shard async for shard in self._generator.generate(requests, settings)]
        await self.gate(step).wait()
        for shard in shards:
            yield shard


async def quiet() -> None:
    for _ in range(300):
        await asyncio.sleep(0)


def milestones(world: World) -> list[str]:
    return [event for event in world.events if event.startswith(("batch", "update", "sync"))]


def trained_ids(world: World) -> list[list[str]]:
    return [sorted(summary.rollout_id for summary, _ in update.pairs) for update in world.updates]


# ------------------------------------------------------------------------------------------------- staleness 0 is sync
@pytest.mark.parametrize("case", FAMILY)
async def test_async_without_staleness_is_sync_bit_for_bit(case: str) -> None:
    expected, calm = make_driver(FAMILY[case])
    driver, world = make_driver(ahead(0, FAMILY[case]))
    assert await run_driver(driver) == await run_driver(expected)
    assert world.updates == calm.updates
    assert world.weight == calm.weight
    assert driver.state() == expected.state()


@pytest.mark.parametrize("case", ["plain", "normalised", "remax"])
async def test_staleness_makes_another_run(case: str) -> None:
    """Or the test above could not fail."""
    driver, world = make_driver(ahead(1, FAMILY[case]))
    calm, calm_world = make_driver(FAMILY[case])
    await run_driver(driver)
    await run_driver(calm)
    assert world.updates != calm_world.updates


# ---------------------------------------------------------------------------------------------------------- what beside
async def test_one_step_off_samples_the_next_batch_beside_the_update_and_syncs_when_it_is_there() -> None:
    driver, world = make_driver(replace(ONE_STEP_OFF, num_steps=3))
    gated = Gated(driver, world)
    running = asyncio.ensure_future(run_driver(driver))
    await quiet()
    assert milestones(world) == ["sync 1", "batch 1 begins"]
    gated.gate(1).set()
    await quiet()
    assert sorted(milestones(world)[2:]) == ["batch 2 begins", "update 1"]  # and no sync before batch 2 is there
    gated.gate(2).set()
    await quiet()
    assert milestones(world)[4] == "sync 2"
    assert sorted(milestones(world)[5:]) == ["batch 3 begins", "update 2"]
    gated.gate(3).set()
    history = await running
    assert milestones(world)[7:] == ["sync 3", "update 3", "sync 4"]
    assert [metrics["ppo/staleness"] for metrics in history] == [0.0, 1.0, 1.0]


async def test_async_begins_as_many_batches_as_may_grow_old_and_syncs_beside_them() -> None:
    driver, world = make_driver(ahead(2, replace(CONFIG, num_steps=5)))
    gated = Gated(driver, world)
    running = asyncio.ensure_future(run_driver(driver))
    await quiet()
    assert milestones(world) == ["sync 1", "batch 1 begins", "batch 2 begins", "batch 3 begins"]
    gated.gate(1).set()
    await quiet()
    assert milestones(world)[4:] == ["update 1", "sync 2", "batch 4 begins"]  # batches 2 and 3 are still under way
    gated.gate(3).set()
    await quiet()
    assert milestones(world)[7:] == []  # the order of the steps holds
    gated.gate(2).set()
    await quiet()
    # Batch 3 was there before its step: batch 4 is enough ahead. Then batch 4 is not there, and training will wait.
    assert milestones(world)[7:] == ["update 2", "sync 3", "update 3", "sync 4", "batch 5 begins"]
    for step in (4, 5):
        gated.gate(step).set()
    await running
    assert milestones(world)[12:] == ["update 4", "sync 5", "update 5", "sync 6"]


@pytest.mark.parametrize("config", [ONE_STEP_OFF, *(ahead(bound) for bound in range(4))])
async def test_no_token_is_older_than_the_bound_and_no_prompt_is_lost_or_trained_on_twice(config: PpoConfig) -> None:
    driver, world = make_driver(config)
    history = await run_driver(driver)
    staleness = [metrics["ppo/staleness"] for metrics in history]
    assert max(staleness) == config.staleness_bound
    assert [metrics["ppo/staleness_mean"] for metrics in history] == staleness
    prompts = [summary.prompt_id for update in world.updates for summary, _ in update.pairs]
    assert prompts == [f"p{number}" for number in range(6 * 8)]


async def test_where_training_never_waits_tokens_stay_as_fresh_as_its_pace_allows() -> None:
    driver, _ = make_driver(ahead(3, replace(CONFIG, num_steps=8)))
    update = driver.trainer.update

    async def slow(**given: Any) -> Mapping[str, float]:
        await quiet()  # a batch is sampled meanwhile
        return await update(**given)

    driver.trainer.update = slow  # type: ignore[method-assign]
    assert [metrics["ppo/staleness"] for metrics in await run_driver(driver)] == [0, 1, 2, 3, 1, 1, 1, 1]


async def test_an_engine_that_stays_behind_is_found_out() -> None:
    driver, world = make_driver(ahead(1))
    world.lag = 1
    with pytest.raises(ContractError, match=r"step 2 holds a token that was sampled 2 updates ago, .*async allows 1"):
        await run_driver(driver)
    assert [event for event in world.events if event.startswith("update")] == ["update 1"]


async def test_filtered_batches_take_turns_at_the_prompts() -> None:
    driver, world = make_driver(ahead(2, FAMILY["filtered"]))
    await run_driver(driver)
    asked = [int(request.rollout_id.split("/")[0]) for request in world.requests]
    assert asked == sorted(asked)


async def test_where_a_batch_cannot_be_collected_the_run_ends_and_nothing_stays_behind() -> None:
    driver, world = make_driver(ahead(2))

    class Broken(type(driver.collector.reward_model)):  # type: ignore[misc]
        async def score(self, shard: RolloutShard) -> object:
            if shard.summaries[0].rollout_id.startswith("3/"):
                raise RlhfError("reward model 0 died")
            return await super().score(shard)

    driver.collector.reward_model = Broken(world)
    with pytest.raises(RlhfError, match="reward model 0 died"):
        await run_driver(driver)
    assert len(world.updates) == 2
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_phases_are_told_of_the_step_that_is_waited_for() -> None:
    told: list[tuple[int, str]] = []
    driver, _world = make_driver(replace(ONE_STEP_OFF, num_steps=2), on_phase=lambda *phase: told.append(phase))
    await run_driver(driver)
    assert told == [
        *((1, "generate"), (1, "score"), (1, "update"), (1, "wait"), (1, "sync")),
        *((2, "generate"), (2, "update"), (2, "sync")),
    ]


async def test_the_fleet_is_told_how_long_training_has_waited() -> None:
    waited: list[float | None] = []
    for config in (replace(CONFIG, num_steps=1), ahead(1, replace(CONFIG, num_steps=1))):
        driver, _ = make_driver(config)
        plain = driver.weights.sync

        async def sync(version: int, *, waited_s: float | None = None, plain: object = plain) -> object:
            waited.append(waited_s)
            return await plain(version)  # type: ignore[operator]

        driver.weights.sync = sync  # type: ignore[method-assign,assignment]
        await run_driver(driver)
    assert waited[:3] == [None, None, 0.0]
    assert waited[3] is not None
    assert waited[3] > 0.0


# ---------------------------------------------------------------------------------------------------------------- state
@pytest.mark.parametrize("case", FAMILY)
@pytest.mark.parametrize("stop_after", [1, 3])
async def test_one_step_off_goes_on_exactly_with_the_batch_that_was_there(case: str, stop_after: int) -> None:
    config = replace(FAMILY[case], schedule="one_step_off")
    whole = await run_driver(make_driver(config)[0])
    first, world = make_driver(config)
    before: list[dict[str, float]] = []

    async def stopping(step: int, metrics: Mapping[str, float]) -> None:
        before.append({name: value for name, value in metrics.items() if not name.startswith("time/")})
        if step == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        await first.run(stopping)
    kept = first.lookahead.kept()
    assert [batch.step for batch in kept.batches] == [stop_after + 1]
    saved = json.loads(json.dumps(first.state(kept)))
    resumed = World()
    resumed.weight = world.weight
    second, _ = make_driver(config, world=resumed)
    second.restore(saved, kept.batches)
    assert before + await run_driver(second) == whole


async def test_async_keeps_what_is_there_and_samples_the_rest_again() -> None:
    driver, world = make_driver(ahead(2))
    gated = Gated(driver, world)
    for step in (1, 2, 4):
        gated.gate(step).set()
    states: list[dict[str, object]] = []
    keeps = []

    async def after_step(step: int, metrics: Mapping[str, float]) -> None:
        await quiet()  # batch 4 is there, batch 3 is not
        keeps.append(driver.lookahead.kept())
        states.append(json.loads(json.dumps(driver.state(keeps[-1]))))

    running = asyncio.ensure_future(driver.run(after_step))
    for _ in range(4):
        await quiet()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [[batch.step for batch in kept.batches] for kept in keeps] == [[2], []]
    assert [state["prompts"] for state in states] == [{"position": 16}, {"position": 16}]

    again, other = make_driver(ahead(2), prompts=FakePrompts())
    again.restore(states[0], keeps[0].batches)
    await run_driver(again)
    before = trained_ids(world)[:1]
    prompts = [name.split("/")[1] for step in [*before, *trained_ids(other)] for name in step]
    assert sorted(prompts, key=lambda name: int(name[1:])) == [f"p{number}" for number in range(6 * 8)]


# ------------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize("schedule", ["one_step_off", "async"])
def test_a_schedule_that_lets_tokens_grow_old_asks_for_importance_weights(schedule: str) -> None:
    with pytest.raises(ConfigError, match=r"ppo\.correction\.level.*up to 1 updates old.*set it to token"):
        replace(CONFIG, schedule=schedule, correction=CorrectionConfig())


def test_without_staleness_none_are_needed() -> None:
    config = PpoConfig(schedule="async", max_staleness=0)
    assert (config.staleness_bound, ONE_STEP_OFF.staleness_bound, PpoConfig().staleness_bound) == (0, 1, 0)


def test_a_negative_staleness_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.max_staleness"):
        ahead(-1)
