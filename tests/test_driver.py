"""The PPO loop with fakes: what happens before what, and that nothing depends on when anything arrives."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import pytest

from rlhf_ray.config.algorithm import KlConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.errors import ContractError, NumericsError, RlhfError
from rlhf_ray.records import Score
from rlhf_ray.roles import RolloutShard
from rlhf_ray.seeds import request_seed
from tests.fakes import Arrange, FakeRewardModel, World, as_they_are, make_driver, reverse, run_driver, shuffled

CONFIG = PpoConfig(num_steps=2, rollouts_per_step=6, num_minibatches=1)
ADAPTIVE = KlConfig(controller="adaptive", coef=0.1, target=4.0, horizon=60)


async def test_a_step_samples_scores_updates_and_syncs_in_this_order() -> None:
    driver, world = make_driver(replace(CONFIG, num_steps=1), shard_size=6)
    await run_driver(driver)
    assert world.events == [
        "sync 1",
        "generate with version 1",
        "shard 1 of 1",
        "reference",
        "score",
        "update 1",
        "sync 2",
    ]


async def test_every_step_samples_with_the_weights_of_the_update_before_it() -> None:
    driver, world = make_driver(replace(CONFIG, num_steps=3))
    await run_driver(driver)
    milestones = [e for e in world.events if e.startswith(("generate", "update", "sync"))]
    assert milestones == [
        "sync 1",
        *("generate with version 1", "update 1", "sync 2"),
        *("generate with version 2", "update 2", "sync 3"),
        *("generate with version 3", "update 3", "sync 4"),
    ]


async def test_scoring_starts_before_the_last_shard_is_there() -> None:
    driver, world = make_driver(replace(CONFIG, num_steps=1))
    await run_driver(driver)
    last = world.events.index("shard 3 of 3")
    assert world.events[:last].count("score") == 2
    assert world.events[:last].count("reference") == 2


async def test_each_prompt_gets_its_responses_with_seeds_of_their_own() -> None:
    driver, world = make_driver(replace(CONFIG, num_steps=1, responses_per_prompt=3))
    await run_driver(driver)
    assert [r.rollout_id for r in world.requests] == ["1/p0/0", "1/p0/1", "1/p0/2", "1/p1/0", "1/p1/1", "1/p1/2"]
    assert [r.order for r in world.requests] == [0, 1, 2, 3, 4, 5]
    assert [r.seed for r in world.requests] == [request_seed(0, 1, order) for order in range(6)]


@pytest.mark.parametrize("arrange", [reverse, shuffled])
@pytest.mark.parametrize("shard_size", [1, 2, 4, 6])
async def test_metrics_are_the_same_bits_whatever_the_order_of_arrival(arrange: Arrange, shard_size: int) -> None:
    config = replace(CONFIG, rollouts_per_step=60, num_steps=3, kl=ADAPTIVE)
    expected = await run_driver(make_driver(config, shard_size=5, arrange=as_they_are)[0])
    assert await run_driver(make_driver(config, shard_size=shard_size, arrange=arrange)[0]) == expected


async def test_the_means_of_a_step_are_those_of_its_rollouts() -> None:
    driver, world = make_driver(replace(CONFIG, num_steps=1))
    (metrics,) = await run_driver(driver)
    seeds = [request.seed for request in world.requests]
    scores = [seed / 2**31 for seed in seeds]
    mean = sum(scores) / 6
    assert metrics["ppo/score_mean"] == pytest.approx(mean, rel=1e-12)
    assert metrics["ppo/score_std"] == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in scores) / 6), rel=1e-12)
    assert metrics["ppo/response_length"] == pytest.approx(sum(1 + seed % 7 for seed in seeds) / 6)
    assert metrics["ppo/finished_fraction"] == pytest.approx(sum(seed % 3 > 0 for seed in seeds) / 6)


# ----------------------------------------------------------------------------------------------------------- controller
async def test_the_adaptive_coefficient_follows_the_observed_kl() -> None:
    driver, world = make_driver(replace(CONFIG, kl=ADAPTIVE))
    world.kl = 4.4  # 10% above the target; 6 samples of a horizon of 60: the factor is 1 + 0.1 * 0.1
    history = await run_driver(driver)
    assert [metrics["ppo/kl_coef"] for metrics in history] == [0.1, pytest.approx(0.101)]
    assert driver.kl_controller.coef == pytest.approx(0.1 * 1.01**2)


async def test_a_fixed_coefficient_stays() -> None:
    driver, world = make_driver(replace(CONFIG, kl=KlConfig(coef=0.3)))
    world.kl = 100.0
    assert [metrics["ppo/kl_coef"] for metrics in await run_driver(driver)] == [0.3, 0.3]


# -------------------------------------------------------------------------------------------------- versions, agreement
async def test_the_policy_version_counts_the_updates_behind_the_weights() -> None:
    history = await run_driver(make_driver(replace(CONFIG, num_steps=3))[0])
    assert [metrics["ppo/policy_version"] for metrics in history] == [1.0, 2.0, 3.0]
    assert [metrics["ppo/staleness"] for metrics in history] == [0.0, 0.0, 0.0]


async def test_an_engine_that_stays_behind_ends_the_run_before_anything_is_learned() -> None:
    driver, world = make_driver(replace(CONFIG, num_steps=1))
    world.lag = 1
    with pytest.raises(ContractError, match=r"step 1 holds a token that was sampled 1 updates ago, .* allows 0"):
        await run_driver(driver)
    assert "update 1" not in world.events


@pytest.mark.parametrize("difference", [0.011, math.nan])
async def test_the_run_stops_before_the_sync_when_engine_and_trainer_disagree(difference: float) -> None:
    driver, world = make_driver(CONFIG)
    world.logprob_difference = difference
    with pytest.raises(
        NumericsError, match=r"differ by (0\.011|nan) nats .*\(ppo\.contracts\.max_logprob_difference is 0\.01\)"
    ):
        await run_driver(driver)
    assert [e for e in world.events if e.startswith(("update", "sync"))] == ["sync 1", "update 1"]


async def test_a_failing_reward_model_stops_the_step_and_leaves_nothing_running() -> None:
    class Broken(FakeRewardModel):
        async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
            if shard.summaries[0].order == 0:
                raise RlhfError("reward model 0 died")
            await asyncio.sleep(60)
            return ()

    driver, world = make_driver(CONFIG)
    driver.collector.reward_model = Broken(world)
    with pytest.raises(RlhfError, match="reward model 0 died"):
        await run_driver(driver)
    assert "update 1" not in world.events
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---------------------------------------------------------------------------------------------------------------- state
@pytest.mark.parametrize("steps_before", [1, 3])
async def test_a_restored_run_continues_as_if_it_had_never_stopped(steps_before: int) -> None:
    config = replace(CONFIG, num_steps=5, kl=ADAPTIVE)
    whole = await run_driver(make_driver(config, seed=7)[0])

    first, world = make_driver(replace(config, num_steps=steps_before), seed=7)
    before = await run_driver(first)
    saved = json.loads(json.dumps(first.state()))

    resumed_world = World()
    resumed_world.weight = world.weight
    second, _ = make_driver(config, seed=7, world=resumed_world)
    second.restore(saved)
    after = await run_driver(second)
    assert before + after == whole
    assert resumed_world.events[:2] == [
        f"sync {steps_before + 1}",
        f"generate with version {steps_before + 1}",
    ]


async def test_the_state_survives_a_round_trip_unchanged() -> None:
    driver, _ = make_driver(replace(CONFIG, kl=ADAPTIVE))
    await run_driver(driver)
    saved = json.loads(json.dumps(driver.state()))
    other, _ = make_driver(replace(CONFIG, kl=ADAPTIVE))
    other.restore(saved)
    assert other.state() == driver.state() == saved


def test_the_state_of_another_seed_is_refused() -> None:
    saved = make_driver(CONFIG, seed=1)[0].state()
    driver, _ = make_driver(CONFIG, seed=2)
    with pytest.raises(RlhfError, match=r"the saved run has seed 1, this one 2; resume with seed=1"):
        driver.restore(saved)
    assert driver.steps_done == 0


async def test_a_run_that_is_done_only_syncs() -> None:
    driver, _ = make_driver(CONFIG)
    await run_driver(driver)
    other, world = make_driver(CONFIG)
    other.restore(driver.state())
    assert await run_driver(other) == []
    assert world.events == ["sync 3"]
