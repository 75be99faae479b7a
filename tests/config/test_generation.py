"""GenerationConfig: wrong values are refused at the door, and None leaves a choice to the device."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_engines": 0}, r"generation.num_engines \(0\) must be positive"),
        ({"tensor_parallel_size": -1}, r"generation.tensor_parallel_size \(-1\)"),
        ({"shard_size": 0}, r"generation.shard_size \(0\)"),
        ({"max_model_len": 0}, r"generation.max_model_len \(0\)"),
        ({"gpu_memory_utilization": 1.2}, r"generation.gpu_memory_utilization \(1.2\) must lie above 0"),
        ({"seed": -1}, r"generation.seed \(-1\)"),
        ({"engine_args": {"load_format": "pt"}}, r"engine_args \(\['load_format'\]\) must not set"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**change)


def test_a_cpu_gets_a_small_cache_and_no_compilation_unless_told_otherwise() -> None:
    assert GenerationConfig().kv_cache_bytes("cpu") == 128 * 2**20
    assert GenerationConfig().kv_cache_bytes("cuda") is None
    assert GenerationConfig(kv_cache_memory_mb=1).kv_cache_bytes("cuda") == 2**20
    assert GenerationConfig().runs_eagerly("cpu")
    assert not GenerationConfig().runs_eagerly("cuda")
    assert GenerationConfig(enforce_eager=True).runs_eagerly("cuda")


def test_it_is_a_structured_configuration() -> None:
    overrides = OmegaConf.from_dotlist(["num_engines=2", "dtype=float32", "engine_args.block_size=64"])
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(GenerationConfig), overrides))
    assert config == GenerationConfig(num_engines=2, dtype="float32", engine_args={"block_size": 64})
