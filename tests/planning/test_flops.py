"""Operations of a pass, against sums by hand and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_ray.planning.flops import decode_flops, forward_flops, head_flops, layers_flops, six_n_d, training_flops
from rlhf_ray.planning.shapes import KNOWN, ModelShape, shape_of

TINY = ModelShape(hidden=4, intermediate=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2, vocab=10, tied=True)


def test_a_sequence_of_three_tokens_by_hand() -> None:
    matrices = 2 * (4 * (2 * 4 + 2 * 2) + 3 * 4 * 8) * 3  # 2 x weights x tokens: 144 weights a layer
    attention = 2 * 2 * 4 * (1 + 2 + 3)  # scores and values: 2 x 2 x heads x head_dim for each pair
    assert layers_flops(TINY, 3) == 2 * (matrices + attention) == 1920
    assert head_flops(TINY, 3) == 2 * 4 * 10 * 3
    assert forward_flops(TINY, prompt=2, response=1) == 1920 + 80  # only the response passes through the head
    assert forward_flops(TINY, prompt=2, response=1, head=False) == 1920


def test_decoding_token_by_token_adds_up_to_the_forward_pass() -> None:
    one_by_one = sum(decode_flops(TINY, context) for context in range(5))
    assert one_by_one == forward_flops(TINY, prompt=0, response=5)


def test_torch_counts_the_same_but_for_the_half_of_attention_that_is_masked() -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    shape, tokens = shape_of(config.to_dict(), path="made up"), 24
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    masked = shape.num_layers * 4 * shape.num_heads * shape.head_dim * tokens * (tokens - 1) / 2
    rotations = counter.get_total_flops() - layers_flops(shape, tokens) - head_flops(shape, tokens) - masked
    assert 0 <= rotations <= 0.005 * counter.get_total_flops()  # the angles of rotary embeddings, once a pass


def test_training_is_three_forwards_and_four_with_checkpointing() -> None:
    assert training_flops(10.0, checkpointing=False) == 30.0
    assert training_flops(10.0, checkpointing=True) == 40.0
    assert training_flops(10.0, checkpointing=False, frozen=True) == 20.0


def test_six_n_d_is_close_where_sequences_are_short() -> None:
    shape = KNOWN["meta-llama/Llama-3.1-8B-Instruct"]
    exact = training_flops(forward_flops(shape, prompt=0, response=512), checkpointing=False)
    embeddings = shape.vocab * shape.hidden  # are looked up, not multiplied
    assert exact == pytest.approx(six_n_d(shape.parameters - embeddings, 512), rel=0.03)
