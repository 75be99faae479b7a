"""Bad numbers in the loop: a step that fails is skipped or ends the run, a score that is none is a failure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from rlhf_ray.config.algorithm import ContractConfig, KlConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.driver import Driver
from rlhf_ray.errors import ContractError, NumericsError, RewardError
from rlhf_ray.records import RolloutSummary, Score
from rlhf_ray.roles import ScoredShard
from rlhf_ray.selection import finite_or_failed
from tests.fakes import FakeTrainer, World, make_driver, run_driver

STOP = PpoConfig(
    num_steps=3,
    rollouts_per_step=6,
    num_minibatches=1,
    kl=KlConfig(controller="adaptive", coef=0.1, target=4.0, horizon=60),
)
SKIP = replace(STOP, contracts=ContractConfig(on_bad_numbers="skip"))


class Failing(FakeTrainer):
    """Fails in some steps, half way: its weight has moved."""

    def __init__(self, world: World, steps: Sequence[int], error: Exception) -> None:
        super().__init__(world)
        self.steps, self.error = steps, error

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        metrics = await super().update(step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)
        if step in self.steps:
            raise self.error
        return metrics


def failing(config: PpoConfig, *steps: int, error: Exception | None = None) -> tuple[Driver, World, list[str]]:
    driver, world = make_driver(config)
    said: list[str] = []
    driver.warn = said.append
    driver.trainer = Failing(world, steps, error or NumericsError("the loss is not finite"))
    return driver, world, said


# ---------------------------------------------------------------------------------------------------------------- steps
async def test_a_skipped_step_is_told_counted_and_followed_by_the_next_prompts() -> None:
    driver, world, said = failing(SKIP, 2)
    history = await run_driver(driver)
    assert said == ["step 2 is skipped, number 1 of this run: the loss is not finite"]
    assert [metrics["ppo/skipped_steps"] for metrics in history] == [0.0, 1.0, 1.0]
    assert [r.prompt_id for r in world.requests] == [f"p{n}" for n in range(18)]
    assert [r.rollout_id.split("/")[0] for r in world.requests] == [*"111111", *"222222", *"333333"]


async def test_a_skipped_step_logs_what_was_sampled_and_nothing_of_the_update() -> None:
    driver, _, _ = failing(SKIP, 2)
    first, second, third = await run_driver(driver)
    assert set(first) - set(second) == {"ppo/logprob_difference", "ppo/kl_per_response"}
    assert set(first) == set(third)
    assert second["ppo/score_mean"] > 0.0


async def test_the_controller_learns_nothing_from_a_skipped_step() -> None:
    driver, world, _ = failing(SKIP, 2)
    world.kl = 4.4
    history = await run_driver(driver)
    assert [metrics["ppo/kl_coef"] for metrics in history] == [0.1, pytest.approx(0.101), pytest.approx(0.101)]
    assert driver.kl_controller.coef == pytest.approx(0.1 * 1.01**2)


async def test_the_engines_get_what_the_trainer_holds_after_a_skipped_step() -> None:
    driver, world, _ = failing(SKIP, 2)
    await run_driver(driver)
    assert [e for e in world.events if e.startswith(("update", "sync"))] == [
        "sync 1",
        *("update 1", "sync 2"),
        *("update 2", "sync 3"),
        *("update 3", "sync 4"),
    ]


async def test_the_run_ends_with_the_error_where_it_is_to_stop() -> None:
    driver, world, said = failing(STOP, 2)
    with pytest.raises(NumericsError, match="the loss is not finite"):
        await run_driver(driver)
    assert said == []
    assert driver.steps_done == 1
    assert world.events[-1] == "update 2"


async def test_a_broken_contract_ends_the_run_and_is_never_skipped() -> None:
    driver, _, said = failing(SKIP, 1, error=ContractError("before the first update the KL is 1"))
    with pytest.raises(ContractError, match="the KL is 1"):
        await run_driver(driver)
    driver, world, said = failing(SKIP)
    world.logprob_difference = math.nan
    with pytest.raises(ContractError, match="differ by nan nats"):
        await run_driver(driver)
    assert said == []


async def test_a_resumed_run_counts_on() -> None:
    driver, _, _ = failing(SKIP, 2)
    await run_driver(driver)
    resumed, _ = make_driver(SKIP)
    resumed.restore(json.loads(json.dumps(driver.state())))
    assert resumed.skipped_steps == 1


# --------------------------------------------------------------------------------------------------------------- scores
@pytest.mark.parametrize(
    "score",
    [Score(math.nan), Score(math.inf), Score(-math.inf), Score(1.0, parts={"a": 1.0}, step_rewards=((2, math.nan),))],
)
def test_a_score_that_is_no_finite_number_is_a_failure_that_says_so(score: Score) -> None:
    (found,) = finite_or_failed([score])
    assert found.failed.endswith("which is no finite number")
    assert math.isnan(found.total)
    assert found.step_rewards == ()
    assert found.parts == score.parts


def test_other_scores_and_failures_stay_as_they_are() -> None:
    scores = (Score(1.0, step_rewards=((0, -1.0),)), Score(math.nan, failed="a: timed out"))
    found = finite_or_failed(scores)
    assert found[0] is scores[0]
    assert found[1] is scores[1]


def bad_for(*prompts: str) -> World:
    world = World()
    honest = world.score

    def score(summary: RolloutSummary, seed: int, weight: float) -> Score:
        return Score(math.inf) if summary.prompt_id in prompts else honest(summary, seed, weight)

    world.score = score
    return world


async def test_a_rollout_without_a_finite_score_is_left_out_of_the_step() -> None:
    driver, world = make_driver(replace(STOP, num_steps=1), world=bad_for("p3"))
    (metrics,) = await run_driver(driver)
    assert metrics["ppo/failed_fraction"] == pytest.approx(1 / 6)
    assert [summary.prompt_id for summary, _ in world.updates[0].pairs] == ["p0", "p1", "p2", "p4", "p5"]
    assert math.isfinite(metrics["ppo/score_mean"])


async def test_a_greedy_response_without_a_finite_score_is_no_baseline() -> None:
    driver, world = make_driver(replace(STOP, num_steps=1, advantages="remax"))
    honest = world.score

    def score(summary: RolloutSummary, seed: int, weight: float) -> Score:
        return Score(math.nan) if summary.rollout_id == "1/p1/greedy" else honest(summary, seed, weight)

    world.score = score
    await run_driver(driver)
    assert sorted(world.updates[0].baselines) == ["p0", "p2", "p3", "p4", "p5"]


async def test_too_many_of_them_end_the_run_and_the_first_is_named() -> None:
    driver, _ = make_driver(STOP, world=bad_for("p0", "p1"))
    with pytest.raises(RewardError, match=r"2 of 6 .*; the first: a score is inf, which is no finite number"):
        await run_driver(driver)
