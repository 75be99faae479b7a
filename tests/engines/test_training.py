"""The engine's own promises: schedule, clipping, refusal of what is not finite, state on disk."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.config.training import LoraConfig, OptimizerConfig, TrainingConfig
from rlhf_ray.engines.training import deepspeed_config
from tests import textbook, tiny, trainers
from tests.ranks import Ranks, ranks
from tests.trainers import EngineCase, largest_difference


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> EngineCase:
    return EngineCase(tiny.saved(tiny.causal_model(), tmp_path_factory.mktemp("model")), TrainingConfig())


def changed(case: EngineCase, **training: object) -> EngineCase:
    return replace(case, training=replace(case.training, **training))  # type: ignore[arg-type]


def test_deepspeed_is_told_of_stage_precision_and_offload() -> None:
    plain = deepspeed_config(TrainingConfig())
    assert plain["zero_optimization"]["stage"] == 0
    assert plain["gradient_clipping"] == 0.0  # done by ours, which also reports the norm
    sharded = deepspeed_config(TrainingConfig(zero_stage=3, offload_optimizer=True, dtype="bfloat16"))
    assert sharded["zero_optimization"]["stage"] == 3
    assert sharded["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert sharded["gradient_clipping"] == 1.0
    assert sharded["data_types"] == {"grad_accum_dtype": "fp32"}


def test_bfloat16_without_zero_runs_as_stage_one() -> None:
    assert deepspeed_config(TrainingConfig(dtype="bfloat16"))["zero_optimization"]["stage"] == 1


WAYS = [
    (1, 0, "float32"),
    (1, 0, "bfloat16"),
    (2, 0, "float32"),
    (2, 1, "float32"),
    (2, 2, "float32"),
    (2, 3, "float32"),
    (2, 3, "bfloat16"),
]


@pytest.mark.integration
@pytest.mark.parametrize(("world_size", "zero_stage", "dtype"), WAYS)
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_what_is_not_finite_on_one_rank_is_refused_by_all_before_the_weights_change(
    case: EngineCase, world_size: int, zero_stage: int, dtype: str, poison: str
) -> None:
    case = changed(case, zero_stage=zero_stage, dtype=dtype)
    answers = ranks(world_size).run(trainers.poisoned_step, case, poison)
    for message, unchanged in answers:
        what = "the loss is not finite" if poison == "loss" else "the gradient's norm is (nan|inf)"
        assert re.match(what + " in optimizer step 2; the weights are left as they were", message), message
        assert unchanged


@pytest.mark.integration
@pytest.mark.parametrize(
    ("world_size", "training"),
    [
        *((world_size, {"zero_stage": stage}) for world_size in (1, 2) for stage in range(4)),
        *((2, {"zero_stage": stage, "dtype": "bfloat16"}) for stage in (1, 2, 3)),
        *((2, {"zero_stage": stage, "offload_optimizer": True}) for stage in (1, 2, 3)),
    ],
)
def test_after_a_refused_step_the_run_goes_on_as_if_it_had_not_been_tried(
    case: EngineCase, world_size: int, training: dict[str, object]
) -> None:
    for poison, says in (("nothing", ""), ("loss", "the loss is not finite"), ("gradient", "the gradient's norm is")):
        answers = ranks(world_size).run(trainers.weights_around_a_refusal, changed(case, **training), poison)
        assert all(said.startswith(says) and bool(said) == bool(says) for said, _, _ in answers)
        _, tried, never = answers[0]
        assert largest_difference(tried, never) == 0.0, poison
        assert largest_difference(tried, textbook.weights(tiny.causal_model())) > 1e-3


@pytest.mark.integration
def test_parameters_that_zero_leaves_whole_survive_a_refusal_too(case: EngineCase, two_ranks: Ranks) -> None:
    case = replace(changed(case, zero_stage=3), whole_elements=10_000)
    _, tried, never = two_ranks.run(trainers.weights_around_a_refusal, case, "gradient")[0]
    assert largest_difference(tried, never) == 0.0


@pytest.mark.integration
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_parameters_whose_gradients_are_not_finite_are_named(case: EngineCase, zero_stage: int) -> None:
    for names in ranks(2).run(trainers.poisoned_parameters, changed(case, zero_stage=zero_stage), 0):
        # The second layer and the head lie above; the tied embeddings are below.
        assert "model.model.embed_tokens.weight" in names
        assert "model.model.layers.0.mlp.up_proj.weight" in names
        assert not [name for name in names if ".layers.1." in name or name.endswith("model.norm.weight")]


@pytest.mark.integration
@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("clipping", [0.0, 0.25])
def test_the_norm_is_that_of_the_whole_gradient_and_the_clip_holds_to_it(
    case: EngineCase, world_size: int, zero_stage: int, clipping: float
) -> None:
    slow = OptimizerConfig(learning_rate=1e5, epsilon=1e6, warmup_fraction=0.0, decay="constant")
    case = replace(case, optimizer=slow)
    norms, moved = zip(
        *ranks(world_size).run(
            trainers.norm_and_movement, changed(case, zero_stage=zero_stage, gradient_clipping=clipping)
        ),
        strict=True,
    )
    expected = textbook.gradient_norm(case.path)
    assert norms == pytest.approx([expected] * world_size, rel=1e-5)
    assert expected > 1.0
    # With so large an epsilon, Adam's first step is learning_rate * gradient / epsilon.
    assert moved[0] * 1e6 / 1e5 == pytest.approx(clipping or expected, rel=1e-3)


@pytest.mark.integration
def test_checkpointing_runs_a_layer_again_in_the_backward_pass(case: EngineCase, one_rank: Ranks) -> None:
    assert one_rank.run(trainers.layer_calls, case) == [1]
    assert one_rank.run(trainers.layer_calls, changed(case, gradient_checkpointing=True)) == [2]


@pytest.mark.integration
def test_the_learning_rate_follows_its_schedule(case: EngineCase, one_rank: Ranks) -> None:
    schedule = OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.2, decay="cosine", floor=0.1)
    (rates,) = one_rank.run(trainers.learning_rates, replace(case, optimizer=schedule, num_steps=10), 12)
    assert rates[:2] == pytest.approx([0.5e-3, 1e-3])
    expected = [1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 8))) for i in range(8)]
    assert rates[2:10] == pytest.approx(expected)
    assert rates[10:] == pytest.approx([1e-4, 1e-4])


@pytest.mark.integration
def test_a_state_that_is_not_there_is_named(case: EngineCase, one_rank: Ranks, tmp_path: Path) -> None:
    (message,) = one_rank.run(trainers.failed_load, case, str(tmp_path))
    assert message == f"checkpoint ('{tmp_path}/step-7') holds no state of a trainer; name a finished step"


@pytest.mark.integration
@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 2), (2, 3)])
def test_only_adapters_change_when_there_are_some(case: EngineCase, world_size: int, zero_stage: int) -> None:
    lora = changed(case, zero_stage=zero_stage, lora=LoraConfig(rank=4, alpha=8.0, target_modules=("q_proj",)))
    weights = ranks(world_size).run(trainers.weights_after_steps, lora, 2)[0]
    start = textbook.weights(tiny.causal_model())
    moved = {name for name in start if abs(weights[name] - start[name]).max() > 0}
    assert moved == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}
    plain = ranks(1).run(trainers.weights_after_steps, changed(lora, zero_stage=0), 2)[0]
    assert largest_difference(weights, plain) < 1e-5
