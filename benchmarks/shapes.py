"""The models that benchmarks of speed use, by name: small, built from nothing, the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlhf_ray.config.model import ScratchConfig

_M30 = ScratchConfig(
    architecture="qwen2",
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=8,
    num_heads=8,
    num_key_value_heads=4,
)
SHAPES: Mapping[str, ScratchConfig] = {
    "tiny": replace(  # 2.5 million parameters
        _M30, vocab_size=512, hidden_size=256, intermediate_size=512, num_layers=4, num_heads=4, num_key_value_heads=2
    ),
    "m30": _M30,  # 29 million
    "m150": replace(  # 149 million
        _M30, hidden_size=1024, intermediate_size=3584, num_layers=10, num_heads=16, num_key_value_heads=8
    ),
}
