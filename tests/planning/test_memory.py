"""Bytes by role, against the ZeRO paper's own table and sums by hand."""

from __future__ import annotations

import pytest

from rlhf_ray.config.training import LoraConfig, TrainingConfig
from rlhf_ray.planning.memory import (
    activation_bytes,
    frozen_memory,
    generator_memory,
    logit_bytes,
    model_states,
    trainer_memory,
)
from rlhf_ray.planning.shapes import ModelShape

TINY = ModelShape(hidden=4, intermediate=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2, vocab=10, tied=True)
PSI = 7_500_000_000  # the paper's example: 7.5B parameters on 64 devices


@pytest.mark.parametrize(
    ("stage", "gigabytes"),
    [(1, 31.4), (2, 16.6), (3, 1.9)],  # figure 1 there, with K = 12
)
def test_states_are_those_of_the_paper_once_the_float32_sums_are_left_out(stage: int, gigabytes: float) -> None:
    states = model_states(PSI, trainable=PSI, ranks=64, dtype="bfloat16", zero_stage=stage)
    sums = 4 * PSI / (64 if stage >= 2 else 1)  # we keep gradients in float32 too, the paper does not
    assert (states.weights + states.gradients + states.optimizer - sums) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_in_float32_nothing_is_kept_twice() -> None:
    states = model_states(100, trainable=100, ranks=4, dtype="float32", zero_stage=0)
    assert (states.weights, states.gradients, states.optimizer) == (400, 400, 800)
    sharded = model_states(100, trainable=100, ranks=4, dtype="float32", zero_stage=3)
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == (100, 100, 200)


def test_offloaded_states_leave_the_device() -> None:
    states = model_states(100, trainable=100, ranks=2, dtype="bfloat16", zero_stage=2, offload=True)
    assert states.optimizer == 0
    assert states.host == 600


def test_activations_by_hand() -> None:
    layer = 4 * 4 + 3 * 4 + 3 * 2 + 4 * 8  # 66 numbers a token
    assert activation_bytes(TINY, tokens=5, dtype="float32", checkpointing=False) == 2 * layer * 5 * 4
    assert activation_bytes(TINY, tokens=5, dtype="bfloat16", checkpointing=True) == (2 * 4 + layer) * 5 * 2
    assert logit_bytes(TINY, tokens=3, dtype="bfloat16", trained=True) == 3 * 10 * (2 + 2 + 4 + 4)
    assert logit_bytes(TINY, tokens=5000, dtype="bfloat16", trained=False) == 10 * (5000 * 2 + 1024 * 8)


def test_a_rank_holds_policy_and_critic() -> None:
    training = TrainingConfig()
    alone = trainer_memory(TINY, training, ranks=1, critic=False, response_share=0.5)
    both = trainer_memory(TINY, training, ranks=1, critic=True, response_share=0.5)
    assert alone.parts["weights"] == 4 * TINY.parameters
    assert both.parts["weights"] == 4 * (TINY.parameters + TINY.scalar_parameters)
    assert both.parts["activations"] == alone.parts["activations"]
    assert both.total == sum(both.parts.values())


def test_adapters_alone_have_gradients() -> None:
    training = TrainingConfig(lora=LoraConfig(rank=2, target_modules=("q_proj",)))
    memory = trainer_memory(TINY, training, ranks=1, critic=False, response_share=0.5)
    assert memory.parts["gradients"] == 4 * 2 * 2 * (4 + 4)  # layers x rank x both sides, 4 bytes each
    assert memory.parts["weights"] == 4 * TINY.parameters


def test_the_cache_takes_what_is_left_or_what_it_is_given() -> None:
    left = generator_memory(TINY, dtype="bfloat16", tensor_parallel=1, device_bytes=80e9, utilisation=0.5, kv=None)
    assert left.total == pytest.approx(40e9)
    given = generator_memory(TINY, dtype="bfloat16", tensor_parallel=1, device_bytes=80e9, utilisation=0.5, kv=1000)
    assert given.parts["KV cache"] == 1000


def test_a_scalar_head_has_no_logits() -> None:
    assert "logits" not in frozen_memory("reward model", TINY, dtype="float32", tokens=8, head=False).parts
    assert frozen_memory("reference", TINY, dtype="float32", tokens=8, head=True).parts["logits"] == 4 * 10 * (4 + 8)
