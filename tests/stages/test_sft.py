"""Supervised fine-tuning on real engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.stages.sft import SftSpec
from tests import textbook, tiny, trainers
from tests.ranks import Ranks, ranks
from tests.trainers import SupervisedCase, largest_difference, means

pytestmark = pytest.mark.integration

# Measured over ZeRO 0 to 3 and 1 or 2 ranks: 1e-6 after 3 steps at a learning rate of 3e-3.
TOLERANCE = 1e-5


def spec(path: str, **training: object) -> SftSpec:
    return SftSpec(
        model_path=path,
        model=ModelConfig(),
        training=TrainingConfig(max_tokens_per_micro_batch=1, **training),  # type: ignore[arg-type]
        optimizer=trainers.OPTIMIZER,
        num_steps=4,
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> SupervisedCase:
    path = tiny.saved(tiny.causal_model(tied=False), tmp_path_factory.mktemp("model"))
    return SupervisedCase(spec(path), [tiny.sequences(5, seed=step) for step in range(3)])


def changed(case: SupervisedCase, **training: object) -> SupervisedCase:
    return replace(case, spec=replace(case.spec, training=replace(case.spec.training, **training)))


@pytest.fixture(scope="module")
def expected(case: SupervisedCase) -> tuple[trainers.Weights, list[float]]:
    return textbook.sft(case)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_split_takes_the_steps_of_a_textbook_loop(
    case: SupervisedCase, expected: tuple[trainers.Weights, list[float]], zero_stage: int, world_size: int
) -> None:
    outcomes = ranks(world_size).run(trainers.supervised_steps, changed(case, zero_stage=zero_stage))
    weights, losses = expected
    assert largest_difference(outcomes[0].policy, weights) < TOLERANCE
    assert [step["sft/loss"] for step in means(outcomes)] == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("max_tokens", [60, 100_000])
def test_the_size_of_micro_batches_changes_no_step(
    case: SupervisedCase, expected: tuple[trainers.Weights, list[float]], one_rank: Ranks, max_tokens: int
) -> None:
    (outcome,) = one_rank.run(trainers.supervised_steps, changed(case, max_tokens_per_micro_batch=max_tokens))
    assert largest_difference(outcome.policy, expected[0]) < TOLERANCE


def test_fewer_demonstrations_than_ranks_leave_a_rank_idle_and_the_step_the_same(
    case: SupervisedCase, two_ranks: Ranks
) -> None:
    alone = replace(case, batches=[batch[:1] for batch in case.batches])
    weights, _ = textbook.sft(alone)
    for zero_stage in (0, 3):
        outcomes = two_ranks.run(trainers.supervised_steps, changed(alone, zero_stage=zero_stage))
        assert largest_difference(outcomes[0].policy, weights) < TOLERANCE


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 1), (2, 2), (2, 3)])
def test_bfloat16_learns_like_float32(case: SupervisedCase, world_size: int, zero_stage: int) -> None:
    steady = replace(case.spec, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.0, decay="constant"))
    many = SupervisedCase(steady, [case.batches[0]] * 10)
    half = changed(many, dtype="bfloat16", zero_stage=zero_stage, max_tokens_per_micro_batch=60)
    losses = [step["sft/loss"] for step in means(ranks(world_size).run(trainers.supervised_steps, half))]
    full = [step["sft/loss"] for step in means(ranks(1).run(trainers.supervised_steps, many))]
    assert losses[-1] < losses[0] - 2.0
    assert losses == pytest.approx(full, abs=0.15)


def test_the_held_out_loss_is_the_loss_without_a_step(case: SupervisedCase, two_ranks: Ranks) -> None:
    outcomes = two_ranks.run(trainers.evaluate_then_step, changed(case, zero_stage=3))
    before, after = means(outcomes)
    assert before["sft/heldout_loss"] == pytest.approx(after["sft/loss"], abs=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 3)])
def test_what_is_saved_answers_like_what_was_trained(
    tmp_path: Path, world_size: int, zero_stage: int, tied: bool
) -> None:
    path = tiny.saved(tiny.causal_model(tied=tied), tmp_path / "start")
    case = SupervisedCase(spec(path, zero_stage=zero_stage), [tiny.sequences(5)])
    outcomes = ranks(world_size).run(trainers.step_and_save, case, str(tmp_path / "saved"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert largest_difference(textbook.weights(model), outcomes[0].policy) == 0.0
    assert largest_difference(textbook.weights(model), textbook.weights(tiny.causal_model(tied=tied))) > 1e-3
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert sorted(file.suffix for file in (tmp_path / "saved").iterdir()) == [".json", ".json", ".safetensors"]
    text = [5, 17, 33, 2, 60, 9]
    with torch.no_grad():
        logprobs = tiny.naive_logprobs(model, text)[1:]
    assert outcomes[0].logprobs == pytest.approx(logprobs.tolist(), abs=5e-6)
