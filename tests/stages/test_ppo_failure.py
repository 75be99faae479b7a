"""A step that fails on real ranks: what is left of it, and that it can be done again from the disk."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.scoring import ReferenceEngine
from rlhf_ray.engines.training import TrainingEngine
from rlhf_ray.errors import DataError, NumericsError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.stages.ppo import PpoLearner
from rlhf_ray.stages.ppo_failure import Findings, not_finite, read_attempt
from tests import tiny, trainers
from tests.ranks import Ranks, ranks
from tests.trainers import PpoCase, Weights, critic_weights, largest_difference, ppo_step, whole_weights

pytestmark = pytest.mark.integration

ROLLOUTS = tiny.rollouts(6)
NAN = float("nan")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> PpoCase:
    directory = tmp_path_factory.mktemp("models")
    policy = tiny.saved(tiny.causal_model(), directory / "policy")
    critic = tiny.saved(tiny.scalar_model(), directory / "critic")
    engine = ReferenceEngine(
        path=policy, model=ModelConfig(), config=ServerConfig(), device="cpu", temperature=trainers.PPO.temperature
    )
    return PpoCase(policy, critic, ROLLOUTS, engine.logprobs(ROLLOUTS))


def changed(case: PpoCase, **training: object) -> PpoCase:
    return replace(case, training=replace(case.training, **training))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- what ranks are asked
@dataclass(frozen=True)
class Poison:
    """Where a step is broken. ``score`` breaks the experience; else the gradient of one optimizer step of one model."""

    what: str = "score"  # score, policy or critic
    at_step: int = 4  # of the optimizer: the third update of the second step has number 7


def poisoned_step(learner: PpoLearner, case: PpoCase, step: int, poison: Poison) -> str:
    """Take a step that fails, and tell how."""
    if poison.what == "score":
        case = replace(case, score_scale=NAN)
    engine = learner.critic if poison.what == "critic" else learner.policy
    assert engine is not None
    honest = engine.backward

    def backward(loss: Any, weight: float) -> None:
        last = learner.policy.info.rank == learner.policy.info.world_size - 1
        honest(loss * (NAN if last and engine.steps_taken + 1 == poison.at_step else 1.0), weight)

    if poison.what != "score":
        engine.backward = backward  # type: ignore[method-assign]
    try:
        ppo_step(learner, case, step)
    except NumericsError as error:
        return str(error)
    finally:
        engine.backward = honest  # type: ignore[method-assign]
    raise AssertionError("the step was taken")


def steps_around_a_failure(info: RankInfo, case: PpoCase) -> tuple[tuple[Weights, Weights], ...]:
    """Weights after good steps, with and without a step of NaN scores among them."""
    trainers.shard_everything()
    ends = []
    for tries in (True, False):
        learner = case.spec.build(info)
        ppo_step(learner, case, 1)
        if tries:
            poisoned_step(learner, case, 2, Poison())
        ppo_step(learner, case, 2)
        ends.append((whole_weights(learner.policy), critic_weights(learner)))
    return tuple(ends)


def weights_at_a_failure(info: RankInfo, case: PpoCase, poison: Poison) -> tuple[str, Weights, Weights]:
    """How the first step failed, and both models' weights after it."""
    trainers.shard_everything()
    learner = case.spec.build(info)
    said = poisoned_step(learner, case, 1, poison)
    return said, whole_weights(learner.policy), critic_weights(learner)


def failure_examined(
    info: RankInfo, case: PpoCase, poison: Poison, directory: str
) -> tuple[str, str, Findings, Findings, dict[int, tuple[str, ...]]]:
    """Fail, keep everything, build anew and do the part again: as it was, and with its cause removed."""
    trainers.shard_everything()
    learner = case.spec.build(info)
    ppo_step(learner, case, 1)
    said = poisoned_step(learner, case, 2, poison)
    learner.save_state(directory, "trainer")
    where = learner.keep_failure(directory)
    kept = read_attempt(Path(directory), info.rank, learner.device)

    fresh = case.spec.build(info)
    fresh.load_state(directory, "trainer")
    cured = examined(fresh, case, Poison("none"), directory)
    fresh.load_state(directory, "trainer")
    again = examined(fresh, case, poison, directory)
    work = case.works(info.world_size, 2)[info.rank]
    return said, where, again, cured, not_finite(kept.experiences, work)


def examined(learner: PpoLearner, case: PpoCase, poison: Poison, directory: str) -> Findings:
    if poison.what == "score":
        case = replace(case, score_scale=NAN)
    engine: TrainingEngine = learner.critic if poison.what == "critic" and learner.critic else learner.policy
    honest = engine.backward
    if poison.what in ("policy", "critic"):
        last = engine.info.rank == engine.info.world_size - 1
        engine.backward = lambda loss, weight: honest(loss * (NAN if last else 1.0), weight)  # type: ignore
    info = learner.policy.info
    work = case.works(info.world_size, 2)[info.rank]
    findings = learner.examine(directory, work, list(case.rollouts), tuple(case.references))
    engine.backward = honest  # type: ignore[method-assign]
    return findings


def unreadable(info: RankInfo, case: PpoCase, directory: str) -> str:
    try:
        read_attempt(Path(directory), info.rank, case.spec.build(info).device)
    except DataError as error:
        return str(error)
    raise AssertionError("something was read")


# ---------------------------------------------------------------------------------------------------------------- tests
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_of_scores_that_are_no_numbers_leaves_no_trace(case: PpoCase, world_size: int, zero_stage: int) -> None:
    tried, never = ranks(world_size).run(steps_around_a_failure, changed(case, zero_stage=zero_stage))[0]
    assert largest_difference(tried[0], never[0]) == 0.0
    assert largest_difference(tried[1], never[1]) == 0.0


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 2), (2, 3)])
@pytest.mark.parametrize("what", ["policy", "critic"])
def test_weights_are_those_of_before_the_update_that_failed(
    constant: PpoCase, world_size: int, zero_stage: int, what: str
) -> None:
    case = changed(constant, zero_stage=zero_stage)
    fails_third = Poison(what, at_step=3)  # two minibatches in each of two epochs
    said, policy, critic = ranks(world_size).run(weights_at_a_failure, case, fails_third)[0]
    assert said.startswith("the loss is not finite in optimizer step 3")
    before = replace(case.ppo, num_epochs=1)
    first_epoch = ranks(world_size).run(trainers.ppo_steps, replace(case, ppo=before), (1,))[0]
    # When the critic fails the policy has taken its own update on that minibatch.
    assert what == "critic" or largest_difference(policy, first_epoch.policy) == 0.0
    assert largest_difference(critic, first_epoch.critic) == 0.0


@pytest.fixture(scope="module")
def constant(case: PpoCase) -> PpoCase:
    steady = replace(trainers.OPTIMIZER, decay="constant")
    return replace(case, ppo=replace(case.ppo, policy_optimizer=steady, critic_optimizer=steady))


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 1), (2, 3)])
@pytest.mark.parametrize(
    ("poison", "where"),
    [
        (Poison("score"), "the step's experience, before its first update"),
        (Poison("policy", 7), r"the policy's update in epoch 2, minibatch \d"),
        (Poison("critic", 6), r"the critic's update in epoch 1, minibatch \d"),
    ],
    ids=lambda value: value.what if isinstance(value, Poison) else "",
)
def test_what_failed_is_done_again_from_the_disk(
    case: PpoCase, tmp_path: Path, world_size: int, zero_stage: int, poison: Poison, where: str
) -> None:
    case = changed(case, zero_stage=zero_stage)
    answers = ranks(world_size).run(failure_examined, case, poison, str(tmp_path))
    for said, place, again, cured, kept in answers:
        assert re.fullmatch(where, place)
        assert again.error == said
        assert cured.error == ""
        assert cured.gradients == ()
        assert kept == cured.rows == {}
        if poison.what == "score":
            assert all(set(names) >= {"score", "reward"} for names in again.rows.values())
            assert not again.gradients
    if poison.what == "score":
        assert sorted(order for answer in answers for order in answer[2].rows) == [0, 1, 2, 3, 4, 5]
    else:
        assert any(name.endswith("mlp.up_proj.weight") for name in answers[-1][2].gradients)
        loss = {"policy": "ppo/policy_loss", "critic": "ppo/value_loss"}[poison.what]
        whole = MetricSums.merged([answer[2].metrics for answer in answers])
        assert np.isfinite(whole.means()[loss])


def test_a_rank_that_left_nothing_is_named(case: PpoCase, one_rank: Ranks, tmp_path: Path) -> None:
    (message,) = one_rank.run(unreadable, case, str(tmp_path))
    assert message.startswith(f"{tmp_path}/failure_rank_00000.json: does not tell what rank 0 was doing (FileNotFound")
    (tmp_path / "failure_rank_00000.json").write_text(json.dumps({"part": "policy"}))
    (message,) = one_rank.run(unreadable, case, str(tmp_path))
    assert "examine it with as many ranks as the run had" in message
