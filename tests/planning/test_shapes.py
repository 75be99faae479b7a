"""Parameter counts against real models, built without memory on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, Qwen2Config, Qwen3Config

from rlhf_ray.config.model import ModelConfig, ScratchConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.shapes import KNOWN, resolve_shape, scratch_shape, shape_of

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = [
    LlamaConfig(**SMALL, tie_word_embeddings=True),
    LlamaConfig(**SMALL, tie_word_embeddings=False),
    Qwen2Config(**SMALL, tie_word_embeddings=True),
    Qwen3Config(**SMALL, tie_word_embeddings=False, head_dim=32),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.model_type}-{c.tie_word_embeddings}")
def test_the_parameters_are_those_of_the_model_that_transformers_builds(config: LlamaConfig) -> None:
    shape = shape_of(config.to_dict(), path="made up")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        config.num_labels = 1
        scalar = AutoModelForSequenceClassification.from_config(config)
    assert shape.parameters == model.num_parameters()
    assert shape.scalar_parameters == scalar.num_parameters()


def test_scratch_models_have_a_shape_of_their_own() -> None:
    scratch = ScratchConfig(vocab_size=1000, hidden_size=128, num_heads=4)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.num_layers,
        num_attention_heads=4,
        num_key_value_heads=scratch.num_key_value_heads,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        assert scratch_shape(scratch).parameters == AutoModelForCausalLM.from_config(config).num_parameters()


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-0.6B", 0.596),  # 0.6B, 0.44B without embeddings (model card)
        ("Qwen/Qwen3-8B", 8.19),  # 8.2B
        ("Qwen/Qwen3-32B", 32.76),  # 32.8B
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.494),  # 0.49B
        ("meta-llama/Llama-3.2-1B-Instruct", 1.236),  # 1.23B
        ("meta-llama/Llama-3.1-8B-Instruct", 8.030),  # 8.03B
        ("meta-llama/Llama-3.1-70B-Instruct", 70.554),  # 70.6B
    ],
)
def test_known_models_have_the_parameters_that_their_cards_state(name: str, billions: float) -> None:
    assert KNOWN[name].parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_a_cache_of_llama_3_1_8b_takes_128_kib_a_token() -> None:
    assert KNOWN["meta-llama/Llama-3.1-8B-Instruct"].kv_bytes_per_token(2) == 128 * 1024


def test_adapters_count_both_of_their_sides() -> None:
    shape = KNOWN["meta-llama/Llama-3.1-8B-Instruct"]
    assert shape.lora_parameters(8, ("q_proj", "v_proj")) == 32 * 8 * (
        (4096 + 4096) + (4096 + 1024)
    )  # 3.4M, as peft says


def test_a_directory_is_read_and_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[0].to_dict()))
    assert resolve_shape(str(tmp_path), ModelConfig()).vocab == 320
    with pytest.raises(ConfigError, match="mamba"):
        shape_of({"model_type": "mamba"}, path="x")
    with pytest.raises(ConfigError, match="nobody/nothing"):
        resolve_shape("nobody/nothing", ModelConfig())
