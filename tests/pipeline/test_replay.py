"""Saved rollouts and their replay, with fakes: the same driver gives the same run, and a stranger is named."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.algorithm import FilterConfig, KlConfig
from rlhf_ray.config.ppo import PpoConfig, PpoRewardConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.driver import Driver, Roles
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.sinks import METRICS_FILE
from rlhf_ray.pipeline.recording import recorded
from rlhf_ray.pipeline.replay import RecordedRun, compared, replayed_roles
from rlhf_ray.records import GenerationRequest, Rollout, SamplingSettings, Score
from rlhf_ray.roles import Ref, RolloutShard, ScoredShard
from rlhf_ray.rollout_store import ROLLOUTS, SavedStep, step_directory
from tests.fakes import FakePrompts, FakeWeightSync, World, run_driver

CONFIG = PpoConfig(
    num_steps=3,
    rollouts_per_step=8,
    num_minibatches=1,
    kl=KlConfig(controller="adaptive", coef=0.1, target=4.0, horizon=60),
)
FAMILY = {
    "plain": CONFIG,
    "normalised": replace(CONFIG, reward=PpoRewardConfig(normalise_scores=True)),
    "remax": replace(CONFIG, advantages="remax"),
    "filtered": replace(
        CONFIG, advantages="grpo", responses_per_prompt=2, filter=FilterConfig(enabled=True, oversampling=2.0)
    ),
}


class Here:
    """Blocks lie in this process."""

    async def fetch(self, ref: Ref) -> Any:
        return ref

    async def put(self, block: object) -> Ref:
        return block


class Generator:
    """Shards of three, the last first; what is sampled follows from seed and weights."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        assert self.world.served is not None
        version, weight = self.world.served
        for start in reversed(range(0, len(requests), 3)):
            rollouts = [self.rollout(request, version, weight) for request in requests[start : start + 3]]
            yield RolloutShard(tuple(r.summary for r in rollouts), rollouts)

    def rollout(self, request: GenerationRequest, version: int, weight: float) -> Rollout:
        length = 1 + request.seed % 5
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            order=request.order,
            prompt_ids=request.prompt_ids,
            response_ids=np.full(length, request.seed % 97, dtype=np.int32),
            rollout_logprobs=np.full(length, weight, dtype=np.float32),
            policy_versions=np.full(length, version, dtype=np.int32),
            finish_reason="stop" if request.seed % 3 else "length",
            seed=request.seed,
        )


class Reference:
    async def logprobs(self, shard: RolloutShard) -> Ref:
        return tuple(rollout.rollout_logprobs - np.float32(0.25) for rollout in shard.rollouts)


class RewardModel:
    """Every fifth rollout fails, and prompts with an even number have no signal."""

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        return tuple(self.of(rollout) for rollout in shard.rollouts)

    def of(self, rollout: Rollout) -> Score:
        if rollout.seed % 7 == 1:
            return Score(math.nan, failed="a: timed out")
        number = int(rollout.prompt_ids[0])
        total = 1.0 if number % 2 == 0 else rollout.seed / 2**31
        return Score(total, parts={"a": total}, step_rewards=((0, 0.125),) if number % 3 == 0 else ())


class Trainer:
    """One number, moved by everything that it is given."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        kl = 0.0
        for shard in sorted(shards, key=lambda s: s.summaries[0].order):
            rollouts = {r.order: (r, ref) for r, ref in zip(shard.rollouts, shard.ref_logprobs, strict=True)}
            for summary, score in zip(shard.summaries, shard.scores, strict=True):
                rollout, reference = rollouts[summary.order]
                kl += float((rollout.rollout_logprobs - reference).sum())
                gain = score.total - baselines.get(summary.prompt_id, 0.0) + sum(v for _, v in score.step_rewards)
                self.world.weight = 0.9 * self.world.weight + 0.1 * gain - 0.01 * kl_coef * kl
        return {"ppo/logprob_difference": 0.0, "ppo/kl_per_response": 5.0 + kl, "ppo/entropy": self.world.weight}

    async def save_state(self, directory: str, tag: str) -> None: ...

    async def load_state(self, directory: str, tag: str) -> None: ...

    def checkpointed(self, directory: str, tag: str, step: int) -> None: ...

    async def save(self, directory: str) -> None: ...


def roles_of(world: World) -> Roles:
    return Roles(Generator(world), Reference(), RewardModel(), Trainer(world), FakeWeightSync(world))


def driver_of(roles: Roles, config: PpoConfig, seed: int = 0) -> Driver:
    prompts = FakePrompts(config.prompts_per_step)
    return Driver(
        roles=roles,
        prompts=prompts,
        config=config,
        settings=SamplingSettings(),
        seed=seed,
        max_failed_fraction=0.9,
        warn=lambda _: None,
    )


def heard(roles: Roles, directory: Path) -> Roles:
    return recorded(roles, Here(), directory, RunConfig(ppo=PpoConfig(save_rollouts=True)))  # type: ignore[arg-type]


async def saved_run(directory: Path, config: PpoConfig) -> list[dict[str, float]]:
    return await run_driver(driver_of(heard(roles_of(World()), directory), config))


async def replayed(directory: Path, config: PpoConfig, seed: int = 0) -> list[dict[str, float]]:
    roles = replayed_roles(Trainer(World()), directory / ROLLOUTS, Here().put)
    return await run_driver(driver_of(roles, config, seed))


def by_step(history: Sequence[Mapping[str, float]]) -> dict[int, Mapping[str, float]]:
    return dict(enumerate(history, start=1))


# --------------------------------------------------------------------------------------------------------------- saving
@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY.keys())
async def test_listening_changes_no_number_of_a_run(tmp_path: Path, config: PpoConfig) -> None:
    history = await saved_run(tmp_path, config)
    sizes = [metrics.pop("ppo/saved_bytes") for metrics in history]
    assert history == await run_driver(driver_of(roles_of(World()), config))
    for step, size in enumerate(sizes, start=1):
        assert size == sum(path.stat().st_size for path in step_directory(tmp_path / ROLLOUTS, step).iterdir())


async def test_what_is_saved_is_what_was_sampled_and_not_what_was_trained(tmp_path: Path) -> None:
    config = replace(FAMILY["filtered"], reward=PpoRewardConfig(normalise_scores=True))
    history = await saved_run(tmp_path, config)
    step = SavedStep(step_directory(tmp_path / ROLLOUTS, 1))
    pairs = [pair for shard in step.shards() for pair in zip(shard.rollouts, shard.scores, strict=True)]
    assert repr([score for _, score in pairs]) == repr([RewardModel().of(rollout) for rollout, _ in pairs])
    assert any(score.failed for _, score in pairs)
    assert len(step.record.trained) == round(history[0]["ppo/trained_fraction"] * len(pairs))
    assert 0 < len(step.record.trained) < len(pairs)
    raw = {rollout.order: score.total for rollout, score in pairs}
    assert all(score.total != raw[order] for order, score in step.record.trained.items())


async def test_greedy_responses_are_saved_with_their_scores_and_no_reference(tmp_path: Path) -> None:
    await saved_run(tmp_path, FAMILY["remax"])
    shards = SavedStep(step_directory(tmp_path / ROLLOUTS, 1)).shards()
    greedy = [shard for shard in shards if shard.reference is None]
    assert sorted(r.rollout_id for shard in greedy for r in shard.rollouts) == [f"1/p{n}/greedy" for n in range(8)]
    assert all(len(shard.scores) == len(shard.rollouts) for shard in shards)


# --------------------------------------------------------------------------------------------------------------- replay
@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY.keys())
async def test_a_replay_agrees_bit_for_bit_in_every_metric(tmp_path: Path, config: PpoConfig) -> None:
    history = await saved_run(tmp_path, config)
    comparison = compared(by_step(history), by_step(await replayed(tmp_path, config)))
    assert comparison.exact
    names = {difference.metric for difference in comparison.differences}
    assert {"ppo/entropy", "ppo/score_mean", "ppo/kl_coef", "ppo/policy_version", "ppo/trained_fraction"} <= names
    assert not names & {"ppo/sync_bytes", "ppo/saved_bytes"}
    assert "bit for bit" in comparison.verdict
    assert len({metrics["ppo/kl_coef"] for metrics in history}) == 3  # the controller had something to do


async def test_other_settings_show_in_the_metrics_that_they_change(tmp_path: Path) -> None:
    history = await saved_run(tmp_path, CONFIG)
    other = replace(CONFIG, kl=replace(CONFIG.kl, coef=0.2))
    comparison = compared(by_step(history), by_step(await replayed(tmp_path, other)))
    found = {d.metric: d for d in comparison.differences}
    assert not comparison.exact
    assert found["ppo/kl_coef"].largest >= 0.1
    assert found["ppo/score_mean"].largest == 0.0  # the rollouts are the same
    assert found["ppo/entropy"].largest > 0.0
    assert f"differs in {sum(d.largest > 0 for d in comparison.differences)} of" in comparison.verdict


@pytest.mark.parametrize(
    ("changes", "seed", "says"),
    [
        ({}, 1, r"step_000001: seed of rollout '1/p\d/0' is \d+, and the driver asks for \d+; replay with"),
        ({"responses_per_prompt": 2}, 0, r"step_000001: the driver asks for rollout '1/p0/1', which was not saved"),
        ({"rollouts_per_step": 7}, 0, r"step_000001: the driver does not ask for rollout '1/p7/0', which was saved"),
        ({"num_steps": 4}, 0, r"step_000004: no such directory"),
    ],
)
async def test_the_first_difference_of_what_is_asked_for_is_named(
    tmp_path: Path, changes: dict[str, Any], seed: int, says: str
) -> None:
    await saved_run(tmp_path, CONFIG)
    with pytest.raises(DataError, match=says):
        await replayed(tmp_path, replace(CONFIG, **changes), seed)


async def test_other_prompts_are_named(tmp_path: Path) -> None:
    await saved_run(tmp_path, CONFIG)
    driver = driver_of(replayed_roles(Trainer(World()), tmp_path / ROLLOUTS, Here().put), CONFIG)
    honest = driver.prompts.next_prompts

    def changed(count: int) -> list[Any]:
        return [replace(p, token_ids=p.token_ids + (p.prompt_id == "p4")) for p in honest(count)]

    driver.prompts.next_prompts = changed  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"prompt tokens of rollout '1/p4/0' is \[4, 4\], and the driver asks for \[5"):
        await run_driver(driver)


async def test_a_shard_that_is_never_asked_for_is_named_before_the_update(tmp_path: Path) -> None:
    await saved_run(tmp_path, FAMILY["remax"])
    with pytest.raises(DataError, match=r"does not ask for rollout '1/p\d/greedy', which was saved"):
        await replayed(tmp_path, CONFIG)


# ---------------------------------------------------------------------------------------------------------- comparison
def test_a_difference_is_the_largest_of_all_steps_and_of_their_bits() -> None:
    run = {
        1: {"ppo/a": 1.0, "ppo/b": math.nan, "reward/c": 0.0, "time/step": 1.0},
        2: {"ppo/a": 2.0, "ppo/d": 1.0, "gold/heldout_mean": 3.0, "hacking/flip_rate": 0.1, "ppo/saved_bytes": 3.0},
    }
    again = {
        1: {"ppo/a": 1.5, "ppo/b": math.nan, "reward/c": -0.0, "time/step": 2.0},
        2: {"ppo/a": 2.25, "ppo/e": 1.0, "ppo/sync_bytes": 0.0},
    }
    found = {d.metric.partition("/")[2]: (d.largest, d.step) for d in compared(run, again).differences}
    assert found == {"a": (0.5, 1), "b": (0.0, 1), "c": (5e-324, 1), "d": (math.inf, 2), "e": (math.inf, 2)}


def test_a_number_that_became_nan_differs_by_infinity() -> None:
    (difference,) = compared({1: {"ppo/a": 1.0}}, {1: {"ppo/a": math.nan}}).differences
    assert difference.largest == math.inf


async def test_a_run_that_was_not_saved_from_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl: no step was logged"):
        RecordedRun.of(tmp_path, RunConfig())
    before, *steps = (json.dumps({"step": step, "logged_at": 0}) + "\n" for step in range(3))
    (tmp_path / METRICS_FILE).write_text(before)
    with pytest.raises(DataError, match=r"metrics\.jsonl: no step was logged"):
        RecordedRun.of(tmp_path, RunConfig())
    (tmp_path / METRICS_FILE).write_text("".join([before, *steps]))
    step_directory(tmp_path / ROLLOUTS, 1).mkdir(parents=True)
    with pytest.raises(DataError, match=r"step_000002: not there, .* last \(2\); run with ppo\.save_rollouts=true"):
        RecordedRun.of(tmp_path, RunConfig())
