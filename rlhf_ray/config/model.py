"""Which model is trained: one that exists, or a small one built from nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.config.checks import require, require_positive


@dataclass(frozen=True)
class ScratchConfig:
    """Shape of a model that is built from a config, with a tokenizer trained on the task's own text."""

    architecture: Literal["llama", "qwen2"] = "llama"
    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 512
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02  # deviation of the random weights

    def __post_init__(self) -> None:
        require_positive(
            model__scratch__vocab_size=self.vocab_size,
            model__scratch__hidden_size=self.hidden_size,
            model__scratch__intermediate_size=self.intermediate_size,
            model__scratch__num_layers=self.num_layers,
            model__scratch__num_heads=self.num_heads,
            model__scratch__num_key_value_heads=self.num_key_value_heads,
            model__scratch__max_position_embeddings=self.max_position_embeddings,
        )
        require(
            self.hidden_size % self.num_heads == 0,
            field="model.scratch.num_heads",
            value=self.num_heads,
            rule=f"must divide hidden_size ({self.hidden_size})",
            remedy="choose a divisor",
        )
        require(
            self.num_heads % self.num_key_value_heads == 0,
            field="model.scratch.num_key_value_heads",
            value=self.num_key_value_heads,
            rule=f"must divide num_heads ({self.num_heads})",
            remedy="choose a divisor",
        )
        require(
            self.vocab_size >= 300,
            field="model.scratch.vocab_size",
            value=self.vocab_size,
            rule="must be at least 300 (256 bytes and the special tokens)",
            remedy="use 1024 or more",
        )


@dataclass(frozen=True)
class ModelConfig:
    """``path`` is a directory or a hub name; without one, ``scratch`` is built.

    ``chat_template`` is the name of a built-in template, a path to a Jinja file, or ``tokenizer`` for the model's own.
    """

    path: str | None = None
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    chat_template: str = "chatml"
    max_length: int = 128
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_positive(model__max_length=self.max_length)
