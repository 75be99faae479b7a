"""Models of the shapes that peers are measured with, with random weights, and prompts of a known length for them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.shapes import SHAPES
from rlhf_ray.config.model import ModelConfig

ADDED = ("<|endoftext|>",)  # which transformers adds to every tokenizer of this family
TEMPLATE = "plain"  # a prompt is its text and nothing more


def make_policy(shape: str, directory: Path, *, seed: int = 0) -> Path:
    """Write a language model of ``shape`` with a tokenizer of as many tokens; what is there already stays."""
    if (directory / "model.safetensors").is_file():
        return directory
    from rlhf_ray.data.tokenizer import train_bpe_tokenizer
    from rlhf_ray.engines.models import build_scratch, load_tokenizer

    scratch = SHAPES[shape]
    tokenizer = train_bpe_tokenizer(itertools.islice(_texts(seed), 4000), scratch.vocab_size, ADDED)
    build_scratch(scratch, tokenizer, seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if (found := len(load_tokenizer(str(directory), ModelConfig()))) != scratch.vocab_size:
        raise ValueError(f"the words give {found} tokens and {scratch.vocab_size} are wanted; take more words")
    return directory


def make_reward_model(policy: Path, directory: Path) -> Path:
    """Write the same body with a scalar head that is drawn."""
    if not (directory / "model.safetensors").is_file():
        import torch

        from rlhf_ray.engines.models import load_scalar, load_tokenizer

        load_scalar(str(policy), ModelConfig(), torch.float32, head_seed=0).save_pretrained(directory)
        load_tokenizer(str(policy), ModelConfig()).save_pretrained(directory)
    return directory


def write_prompts(policy: Path, path: Path, *, count: int, tokens: int, seed: int = 1) -> Path:
    """Write ``count`` different prompts as jsonl, each ``tokens`` long as the policy's own tokenizer cuts it."""
    from rlhf_ray.engines.models import load_tokenizer

    tokenizer = load_tokenizer(str(policy), ModelConfig())
    texts = (" ".join(text.split()[:words]) for text in _texts(seed) for words in range(1, tokens + 1))
    fitting = (text for text in texts if len(tokenizer.encode(text, add_special_tokens=False)) == tokens)
    found = itertools.islice(dict.fromkeys(itertools.islice(fitting, 2 * count)), count)
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in found))
    return path


def _texts(seed: int) -> Iterator[str]:
    """Lines of made-up words, without end."""
    drawn = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]

    def line(_: int) -> str:
        return " ".join("".join(drawn.choices(syllables, k=drawn.randint(1, 3))) for _ in range(20))

    return map(line, itertools.count())
