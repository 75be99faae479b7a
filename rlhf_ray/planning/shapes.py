"""The shape of a dense decoder (Llama, Qwen2, Qwen3): its parameters, and the bytes of its key-value cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.model import ModelConfig, ScratchConfig
from rlhf_ray.errors import ConfigError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model. ``head_dim`` times ``num_heads`` need not be ``hidden``."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    attention_bias: bool = False  # of the query, key and value projections (Qwen2)
    qk_norm: bool = False  # of queries and keys (Qwen3)

    @property
    def matrices_per_layer(self) -> int:
        """Weights of a layer's matrix products."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.hidden * (2 * queries + 2 * keys) + 3 * self.hidden * self.intermediate

    @property
    def body(self) -> int:
        """Parameters without embedding and head: layers and the last norm."""
        biases = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim if self.attention_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.num_layers * (self.matrices_per_layer + biases + norms) + self.hidden

    @property
    def parameters(self) -> int:
        """Of the language model; a tied head counts once."""
        return self.body + self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def scalar_parameters(self) -> int:
        """Of the same body with one scalar head: a critic, a reward model."""
        return self.body + self.vocab * self.hidden + self.hidden

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Of adapters of this rank: rank x (inputs + outputs) for each adapted matrix of each layer."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        sides = {
            "q_proj": self.hidden + queries,
            "k_proj": self.hidden + keys,
            "v_proj": self.hidden + keys,
            "o_proj": queries + self.hidden,
            "gate_proj": self.hidden + self.intermediate,
            "up_proj": self.hidden + self.intermediate,
            "down_proj": self.intermediate + self.hidden,
        }
        return self.num_layers * rank * sum(sides.get(name, 0) for name in targets)

    def kv_bytes_per_token(self, bytes_per_number: int) -> int:
        """A key and a value for each layer and key-value head."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_number


def scratch_shape(scratch: ScratchConfig) -> ModelShape:
    """The model that ``model.scratch`` describes."""
    return ModelShape(
        hidden=scratch.hidden_size,
        intermediate=scratch.intermediate_size,
        num_layers=scratch.num_layers,
        num_heads=scratch.num_heads,
        num_kv_heads=scratch.num_key_value_heads,
        head_dim=scratch.hidden_size // scratch.num_heads,
        vocab=scratch.vocab_size,
        tied=scratch.tie_word_embeddings,
        attention_bias=scratch.architecture == "qwen2",
    )


def shape_of(config: dict[str, Any], *, path: str) -> ModelShape:
    """The shape that a checkpoint's config.json describes. Raises ConfigError for a family that is not known here."""
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise ConfigError(
            "model.path", path, f"is of the family {family!r}, of which no formulas are here", f"use {FAMILIES}"
        )
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return ModelShape(
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocab=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
        qk_norm=family == "qwen3",
    )


# The config.json of models that the presets and their readers name, so that planning needs no network.
KNOWN: dict[str, ModelShape] = {
    "Qwen/Qwen2.5-0.5B-Instruct": ModelShape(896, 4864, 24, 14, 2, 64, 151936, tied=True, attention_bias=True),
    "Qwen/Qwen3-0.6B": ModelShape(1024, 3072, 28, 16, 8, 128, 151936, tied=True, qk_norm=True),
    "Qwen/Qwen3-4B": ModelShape(2560, 9728, 36, 32, 8, 128, 151936, tied=True, qk_norm=True),
    "Qwen/Qwen3-8B": ModelShape(4096, 12288, 36, 32, 8, 128, 151936, tied=False, qk_norm=True),
    "Qwen/Qwen3-32B": ModelShape(5120, 25600, 64, 64, 8, 128, 151936, tied=False, qk_norm=True),
    "meta-llama/Llama-3.2-1B-Instruct": ModelShape(2048, 8192, 16, 32, 8, 64, 128256, tied=True),
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape(4096, 14336, 32, 32, 8, 128, 128256, tied=False),
    "meta-llama/Llama-3.1-70B-Instruct": ModelShape(8192, 28672, 80, 64, 8, 128, 128256, tied=False),
}


def resolve_shape(path: str | None, config: ModelConfig, *, field: str = "model.path") -> ModelShape:
    """The shape of the model at ``path``: a directory, or a known name; None is ``config.scratch``. Uses no network."""
    if path is None:
        return scratch_shape(config.scratch)
    if path in KNOWN:
        return KNOWN[path]
    file = Path(path) / "config.json"
    if not file.is_file():
        rule = "is neither a directory with a config.json nor a model whose shape is known here"
        raise ConfigError(field, path, rule, f"download its config.json, or plan with one of {', '.join(KNOWN)}")
    return shape_of(json.loads(file.read_text()), path=path)
