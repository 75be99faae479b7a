"""What the members of the family ask of the PPO loop: filtering, failures, baselines, normalisation, contracts."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest

from rlhf_ray.config.algorithm import FilterConfig, KlConfig
from rlhf_ray.config.ppo import PpoConfig, PpoRewardConfig
from rlhf_ray.errors import NumericsError, RewardError
from rlhf_ray.records import RolloutSummary, Score
from tests.fakes import Arrange, FakePrompts, World, make_driver, reverse, run_driver, score_by_seed, shuffled

FILTERED = PpoConfig(
    num_steps=1,
    rollouts_per_step=8,
    responses_per_prompt=2,
    num_minibatches=1,
    advantages="grpo",
    filter=FilterConfig(enabled=True),
)
REMAX = PpoConfig(num_steps=1, rollouts_per_step=6, responses_per_prompt=2, num_minibatches=1, advantages="remax")
NORMALISED = PpoConfig(
    num_steps=4, rollouts_per_step=6, num_minibatches=1, reward=PpoRewardConfig(normalise_scores=True)
)
Scorer = Callable[[RolloutSummary, int, float], Score]


def filtered(**rule: object) -> PpoConfig:
    return replace(FILTERED, filter=replace(FILTERED.filter, **rule))  # type: ignore[arg-type]


def even_prompts_differ(summary: RolloutSummary, seed: int, weight: float) -> Score:
    """The responses to p0, p2, ... score 0, 1, ...; all those to p1, p3, ... score 1."""
    sample = 0 if summary.rollout_id.endswith("greedy") else int(summary.rollout_id.rsplit("/", 1)[1])
    return Score(1.0 if int(summary.prompt_id[1:]) % 2 else float(sample))


def failing(*orders: int) -> Scorer:
    def score(summary: RolloutSummary, seed: int, weight: float) -> Score:
        failed = summary.order in orders and not summary.rollout_id.endswith("greedy")
        return Score(math.nan, failed="judge: 503") if failed else score_by_seed(summary, seed, weight)

    return score


def world_that(score: Scorer) -> World:
    world = World()
    world.score = score
    return world


def trained_prompts(world: World, step: int = 0) -> list[str]:
    return sorted({summary.prompt_id for summary, _ in world.updates[step].pairs})


# ----------------------------------------------------------------------------------------------------- dynamic sampling
async def test_groups_without_a_signal_are_replaced_until_there_are_enough() -> None:
    driver, world = make_driver(FILTERED, world=world_that(even_prompts_differ))
    (metrics,) = await run_driver(driver)
    asked = [request.prompt_id for request in world.requests[::2]]
    assert asked == ["p0", "p1", "p2", "p3", "p4", "p5", "p6"]  # 4, then the 2 that are missing, then 1
    assert trained_prompts(world) == ["p0", "p2", "p4", "p6"]
    assert len(world.updates[0].pairs) == 8
    assert metrics["ppo/sampling_rounds"] == 3.0
    assert metrics["ppo/trained_fraction"] == pytest.approx(8 / 14)


async def test_the_mean_score_speaks_of_all_that_were_sampled() -> None:
    driver, _ = make_driver(FILTERED, world=world_that(even_prompts_differ))
    (metrics,) = await run_driver(driver)
    scores = 4 * [0.0, 1.0] + 3 * [1.0, 1.0]
    assert metrics["ppo/score_mean"] == pytest.approx(statistics.fmean(scores))
    assert metrics["ppo/score_std"] == pytest.approx(statistics.pstdev(scores))


@pytest.mark.parametrize(
    ("oversampling", "num_asked", "rounds"), [(1.0, 7, 3), (1.5, 8, 2), (2.0, 8, 1)], ids=["none", "half", "double"]
)
async def test_oversampling_asks_for_more_groups_in_fewer_rounds(
    oversampling: float, num_asked: int, rounds: int
) -> None:
    driver, world = make_driver(filtered(oversampling=oversampling), world=world_that(even_prompts_differ))
    (metrics,) = await run_driver(driver)
    assert len(world.requests) == 2 * num_asked
    assert metrics["ppo/sampling_rounds"] == rounds
    assert trained_prompts(world) == ["p0", "p2", "p4", "p6"]


async def test_all_that_has_a_signal_is_trained_on_also_when_it_is_more_than_was_wanted() -> None:
    driver, world = make_driver(filtered(oversampling=2.0))
    (metrics,) = await run_driver(driver)
    assert trained_prompts(world) == [f"p{n}" for n in range(8)]
    assert metrics["ppo/trained_fraction"] == 1.0


async def test_after_the_last_round_what_was_accepted_is_trained_on() -> None:
    driver, world = make_driver(filtered(max_rounds=2), world=world_that(even_prompts_differ))
    (metrics,) = await run_driver(driver)
    assert trained_prompts(world) == ["p0", "p2", "p4"]
    assert metrics["ppo/sampling_rounds"] == 2.0
    assert metrics["ppo/trained_fraction"] == 0.5


async def test_where_nothing_has_a_signal_all_is_trained_on() -> None:
    driver, world = make_driver(filtered(max_rounds=2), world=world_that(lambda *_: Score(1.0)))
    (metrics,) = await run_driver(driver)
    assert trained_prompts(world) == [f"p{n}" for n in range(8)]
    assert metrics["ppo/trained_fraction"] == 1.0


async def test_ids_orders_and_seeds_are_unique_over_rounds() -> None:
    driver, world = make_driver(replace(FILTERED, num_steps=3), world=world_that(even_prompts_differ))
    await run_driver(driver)
    assert len(world.requests) > 3 * 8
    assert len({request.rollout_id for request in world.requests}) == len(world.requests)
    assert len({request.seed for request in world.requests}) == len(world.requests)
    for update in world.updates:
        orders = [summary.order for summary, _ in update.pairs]
        assert orders == sorted(set(orders))


async def test_a_prompt_that_comes_twice_in_a_step_is_one_larger_group() -> None:
    config = replace(REMAX, rollouts_per_step=8, filter=FilterConfig(enabled=True, max_rounds=2))
    driver, world = make_driver(config, prompts=FakePrompts(num_prompts=3), world=world_that(even_prompts_differ))
    await run_driver(driver)
    ids = [request.rollout_id for request in world.requests]
    assert ids[:8] == ["1/p0/0", "1/p0/1", "1/p1/0", "1/p1/1", "1/p2/0", "1/p2/1", "1/p0/2", "1/p0/3"]
    assert ids[8:] == ["1/p1/again/0", "1/p1/again/1", "1/p2/again/0", "1/p2/again/1"]
    assert len({request.seed for request in world.requests}) == 12
    assert [request.prompt_id for request in world.greedy_requests] == ["p0", "p1", "p2", "p1", "p2"]
    assert len(world.updates[0].pairs) == 8  # four responses to p0, four to p2


# ------------------------------------------------------------------------------------------------------------- failures
async def test_what_could_not_be_scored_is_counted_and_not_trained_on() -> None:
    config = PpoConfig(num_steps=1, rollouts_per_step=8, num_minibatches=1)
    driver, world = make_driver(config, world=world_that(failing(1, 6)))
    (metrics,) = await run_driver(driver)
    assert [summary.order for summary, _ in world.updates[0].pairs] == [0, 2, 3, 4, 5, 7]
    assert metrics["ppo/failed_fraction"] == 0.25
    assert metrics["ppo/trained_fraction"] == 0.75
    scores = [request.seed / 2**31 for request in world.requests if request.order not in (1, 6)]
    assert metrics["ppo/score_mean"] == pytest.approx(statistics.fmean(scores), rel=1e-12)


async def test_more_failures_than_allowed_stop_the_run_before_the_update() -> None:
    config = PpoConfig(num_steps=1, rollouts_per_step=8, num_minibatches=1)
    driver, world = make_driver(config, world=world_that(failing(1, 6)), max_failed_fraction=0.2)
    with pytest.raises(RewardError, match=r"2 of 8 rollouts .* rewards\.max_failed_fraction \(0\.2\); .*: judge: 503"):
        await run_driver(driver)
    assert world.updates == []


async def test_a_group_whose_only_difference_failed_is_replaced() -> None:
    def score(summary: RolloutSummary, seed: int, weight: float) -> Score:
        if summary.rollout_id == "1/p0/0":
            return Score(math.nan, failed="judge: 503")
        return even_prompts_differ(summary, seed, weight)

    driver, world = make_driver(FILTERED, world=world_that(score))
    (metrics,) = await run_driver(driver)
    assert trained_prompts(world) == ["p2", "p4", "p6", "p8"]
    assert metrics["ppo/failed_fraction"] == pytest.approx(1 / len(world.requests))


# ---------------------------------------------------------------------------------------------------------------- ReMax
async def test_each_prompt_is_answered_once_at_temperature_0_and_that_answer_is_not_trained_on() -> None:
    driver, world = make_driver(replace(REMAX, num_steps=2))
    await run_driver(driver)
    assert [r.rollout_id for r in world.greedy_requests] == [f"{1 + n // 3}/p{n}/greedy" for n in range(6)]
    trained = [summary.rollout_id for update in world.updates for summary, _ in update.pairs]
    assert trained == [request.rollout_id for request in world.requests]
    assert [sorted(update.baselines) for update in world.updates] == [["p0", "p1", "p2"], ["p3", "p4", "p5"]]


async def test_the_baseline_is_the_greedy_answer_s_score_with_its_penalties_and_steps() -> None:
    def score(summary: RolloutSummary, seed: int, weight: float) -> Score:
        return Score(3.0, step_rewards=((0, 0.5), (1, 0.25))) if summary.rollout_id.endswith("greedy") else Score(0.0)

    config = replace(REMAX, reward=PpoRewardConfig(score_clip=2.0, missing_eos_penalty=1.0))
    driver, world = make_driver(config, world=world_that(score))
    await run_driver(driver)
    cut = [(n * 7919 + 1) % 3 == 0 for n in range(3)]
    assert sorted(set(cut)) == [False, True]
    assert world.updates[0].baselines == {f"p{n}": 2.75 - cut[n] for n in range(3)}


async def test_a_prompt_without_a_baseline_is_not_trained_on() -> None:
    def score(summary: RolloutSummary, seed: int, weight: float) -> Score:
        failed = summary.rollout_id == "1/p1/greedy"
        return Score(math.nan, failed="judge: 503") if failed else score_by_seed(summary, seed, weight)

    driver, world = make_driver(REMAX, world=world_that(score))
    (metrics,) = await run_driver(driver)
    assert trained_prompts(world) == ["p0", "p2"]
    assert metrics["ppo/trained_fraction"] == pytest.approx(4 / 6)


async def test_baselines_are_on_the_scale_of_the_normalised_scores() -> None:
    config = replace(REMAX, reward=PpoRewardConfig(normalise_scores=True))
    driver, world = make_driver(config)
    await run_driver(driver)
    scores = [request.seed / 2**31 for request in world.requests]
    mean, deviation = statistics.fmean(scores), statistics.stdev(scores)
    expected = {f"p{n}": ((n * 7919 + 1) / 2**31 - mean) / deviation for n in range(3)}
    assert world.updates[0].baselines == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------- normalisation
async def test_scores_are_normalised_over_the_run_and_logged_as_they_are() -> None:
    driver, world = make_driver(replace(NORMALISED, num_steps=2))
    history = await run_driver(driver)
    raw = [update.pairs for update in world.updates]
    seen: list[float] = []
    for step, metrics in enumerate(history):
        weight = 0.0 if step == 0 else world_weight_after(world, 1)
        scores = [weight + request.seed / 2**31 for request in world.requests[6 * step : 6 * step + 6]]
        assert metrics["ppo/score_mean"] == pytest.approx(statistics.fmean(scores), rel=1e-12)
        seen += scores
        expected = [(score - statistics.fmean(seen)) / statistics.stdev(seen) for score in scores]
        assert [score.total for _, score in raw[step]] == pytest.approx(expected, rel=1e-9)


def world_weight_after(world: World, num_updates: int) -> float:
    weight = 0.0
    for update in world.updates[:num_updates]:
        for _, score in update.pairs:
            weight = 0.9 * weight + 0.1 * score.total - 0.01 * KlConfig().coef
    return weight


async def test_scores_of_groups_that_are_filtered_away_count_in_the_normalisation() -> None:
    config = replace(FILTERED, reward=PpoRewardConfig(normalise_scores=True))
    driver, world = make_driver(config, world=world_that(even_prompts_differ))
    await run_driver(driver)
    scores = 4 * [0.0, 1.0] + 3 * [1.0, 1.0]
    assert driver.score_moments.count == 14
    assert driver.score_moments.mean == pytest.approx(statistics.fmean(scores))
    high = (1.0 - statistics.fmean(scores)) / statistics.stdev(scores)
    assert max(score.total for _, score in world.updates[0].pairs) == pytest.approx(high)


async def test_a_restored_run_normalises_as_if_it_had_never_stopped() -> None:
    whole = await run_driver(make_driver(NORMALISED, seed=7)[0])
    first, world = make_driver(replace(NORMALISED, num_steps=2), seed=7)
    before = await run_driver(first)
    saved = json.loads(json.dumps(first.state()))
    resumed = World()
    resumed.weight = world.weight
    second, _ = make_driver(NORMALISED, seed=7, world=resumed)
    second.restore(saved)
    assert second.score_moments == first.score_moments
    assert second.score_moments.count == 12
    assert before + await run_driver(second) == whole


# ------------------------------------------------------------------------------------------------------------ contracts
@pytest.mark.parametrize(("difference", "warned"), [(0.005, False), (0.0051, True), (0.01, True)])
async def test_a_growing_difference_between_engine_and_trainer_is_said_before_it_stops_the_run(
    difference: float, warned: bool
) -> None:
    said: list[str] = []
    driver, world = make_driver(replace(NORMALISED, num_steps=1), warn=said.append)
    world.logprob_difference = difference
    await run_driver(driver)
    expected = (
        f"step 1: engine and trainer log-probabilities differ by {difference:.4g} nats a token on average "
        "(ppo.contracts.warn_logprob_difference is 0.005; at 0.01 the run stops)"
    )
    assert said == ([expected] if warned else [])


async def test_the_limits_of_that_difference_are_the_config_s() -> None:
    contracts = replace(NORMALISED.contracts, warn_logprob_difference=0.1, max_logprob_difference=0.2)
    said: list[str] = []
    driver, world = make_driver(replace(NORMALISED, num_steps=1, contracts=contracts), warn=said.append)
    world.logprob_difference = 0.05
    await run_driver(driver)
    assert said == []
    driver, world = make_driver(replace(NORMALISED, num_steps=1, contracts=contracts), warn=said.append)
    world.logprob_difference = 0.21
    with pytest.raises(NumericsError, match=r"max_logprob_difference is 0\.2\)"):
        await run_driver(driver)


# ---------------------------------------------------------------------------------------------------------- determinism
@pytest.mark.parametrize("arrange", [reverse, shuffled])
@pytest.mark.parametrize("shard_size", [1, 3, 4, 40])
async def test_with_filter_and_baselines_nothing_depends_on_the_order_of_arrival(
    arrange: Arrange, shard_size: int
) -> None:
    def some_groups_agree(summary: RolloutSummary, seed: int, weight: float) -> Score:
        agree = int(summary.prompt_id[1:]) % 3 == 0
        return Score(weight if agree else weight + seed / 2**31, {"judge": seed / 2**31})

    config = PpoConfig(
        num_steps=3,
        rollouts_per_step=24,
        responses_per_prompt=4,
        num_minibatches=1,
        advantages="remax",
        filter=FilterConfig(enabled=True, oversampling=1.5),
        reward=PpoRewardConfig(normalise_scores=True),
        kl=KlConfig(controller="adaptive", coef=0.1, target=4.0, horizon=60),
    )
    plain, one = make_driver(config, shard_size=5, world=world_that(some_groups_agree))
    expected = await run_driver(plain)
    assert expected[0]["ppo/sampling_rounds"] > 1 or expected[0]["ppo/trained_fraction"] < 1
    driver, other = make_driver(config, shard_size=shard_size, arrange=arrange, world=world_that(some_groups_agree))
    assert await run_driver(driver) == expected
    assert other.updates == one.updates
    assert driver.state() == plain.state()
