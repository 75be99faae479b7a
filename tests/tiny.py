"""Models of a few thousand weights and ragged data for them, the same from the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.records import FinishReason, IntArray, Rollout

VOCABULARY = 61
FAMILIES = {"qwen2": Qwen2Config, "llama": LlamaConfig}


def tiny_config(family: str = "qwen2", *, tied: bool = True, **changes: Any) -> PretrainedConfig:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,  # far from uniform, so that a mistake in a position shows
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "use_cache": False,
    }
    return FAMILIES[family](**(settings | changes))


def causal_model(family: str = "qwen2", *, tied: bool = True, seed: int = 1, **changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(tiny_config(family, tied=tied, **changes), dtype=torch.float32)


def scalar_model(family: str = "qwen2", *, seed: int = 2, **changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(
            tiny_config(family, **({"num_labels": 1} | changes)), dtype=torch.float32
        )


def stirred(model: PreTrainedModel) -> PreTrainedModel:
    """Give fresh adapters a B that is not zero, so that they count; under ZeRO-3 while it is gathered."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    return model


def saved(model: PreTrainedModel, directory: Path) -> str:
    model.save_pretrained(directory)
    return str(directory)


def sequences(count: int, *, seed: int = 0, longest: int = 20) -> list[TokenSequence]:
    """Sequences of 3 to ``longest`` tokens, of which the later part counts."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(generator.integers(3, longest + 1))
        mask = np.zeros(length, dtype=np.bool_)
        mask[int(generator.integers(1, length)) :] = True
        made.append(TokenSequence(generator.integers(2, VOCABULARY, length).astype(np.int32), mask))
    return made


def rollouts(
    count: int, *, seed: int = 0, longest_response: int = 9, responses_per_prompt: int = 1, vocabulary: int = VOCABULARY
) -> list[Rollout]:
    """Rollouts of ragged lengths, the last of one token only; orders are 0, 1, 2, ..., groups stand together."""
    generator = np.random.default_rng(seed)
    lengths = [*(int(n) for n in generator.integers(1, longest_response + 1, count - 1)), 1]
    made: list[Rollout] = []
    for order, length in enumerate(lengths):
        prompt, sample = divmod(order, responses_per_prompt)
        drawn = generator.integers(2, vocabulary, int(generator.integers(2, 8))).astype(np.int32)
        prompt_ids = drawn if sample == 0 else made[-1].prompt_ids
        response_ids = generator.integers(2, vocabulary, length).astype(np.int32)
        made.append(_rollout(f"p{prompt}", sample, order, prompt_ids, response_ids))
    return made


def _rollout(prompt_id: str, sample: int, order: int, prompt_ids: IntArray, response_ids: IntArray) -> Rollout:
    finished: FinishReason = "stop" if order % 3 else "length"
    length = len(response_ids)
    return Rollout(
        rollout_id=f"{prompt_id}/{sample}",
        prompt_id=prompt_id,
        order=order,
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        rollout_logprobs=np.full(length, -4.0, dtype=np.float32),
        policy_versions=np.zeros(length, dtype=np.int32),
        finish_reason=finished,
        seed=order,
    )


def sampled_in(step: int, rollout: Rollout) -> Rollout:
    """The rollout, sampled with the weights that this step updates."""
    return replace(rollout, policy_versions=np.full(len(rollout.response_ids), step, dtype=np.int32))


def naive_logprobs(model: PreTrainedModel, token_ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """log p(token t | tokens < t) [S] of one sequence alone, 0 for the first: no batch, no padding, no shortcut."""
    ids = torch.tensor([list(map(int, token_ids))])
    logits = model(input_ids=ids).logits[0].float() / temperature
    out = torch.zeros(ids.shape[1])
    for t in range(1, ids.shape[1]):
        out[t] = logits[t - 1].log_softmax(-1)[ids[0, t]]
    return out


def naive_distributions(model: PreTrainedModel, token_ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """log p(every token | tokens < t) [S, V] of one sequence alone; the first row is 0."""
    ids = torch.tensor([list(map(int, token_ids))])
    logits = model(input_ids=ids).logits[0].float() / temperature
    rows = [torch.zeros(logits.shape[1]), *(logits[t - 1].log_softmax(-1) for t in range(1, ids.shape[1]))]
    return torch.stack(rows)


def naive_values(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """V(state just before token t) [S] of one sequence alone, 0 for the first."""
    ids = torch.tensor([list(map(int, token_ids))])
    hidden = model.model(input_ids=ids).last_hidden_state[0]
    values = model.score(hidden)[:, 0]
    return torch.cat([torch.zeros(1), values[:-1]])
