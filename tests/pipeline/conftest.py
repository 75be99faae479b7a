"""A tokenizer and checkpoints of a few thousand weights, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.model import ScratchConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.data.tokenizer import train_bpe_tokenizer
from rlhf_ray.engines.models import build_scratch

TINY = ScratchConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and the special tokens: one token a letter; with a template, so that no test depends on who sets one."""
    made = train_bpe_tokenizer(["a b"], vocab_size=300)
    set_chat_template(made, "compact")
    return made


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A whole checkpoint: weights in safetensors, and the tokenizer. Never written to by a test."""
    path = tmp_path_factory.mktemp("checkpoint")
    build_scratch(TINY, tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
