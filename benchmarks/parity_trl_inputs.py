"""What TRL's code and ours are both given: tensors from one seed, tiny random models, settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

VOCABULARY = 32
EOS = 1
PAIRS, RESPONSES, LENGTH = 8, 12, 11
MODELS = ("policy", "reference", "score", "value")

_PPO = {
    "learning_rate": 0.02,
    "per_device_train_batch_size": 16,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "total_episodes": 16,
    "num_sample_generations": 0,
    "response_length": 12,
    "stop_token": "eos",
    "temperature": 0.7,
    "missing_eos_penalty": 1.0,
    "kl_coef": 0.05,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "gamma": 0.97,
    "lam": 0.9,
}

SETTINGS: dict[str, Any] = {
    "temperature": 0.7,
    "centering": 0.01,
    "group_size": 4,
    "dpo": {
        "sigmoid": {"loss_type": ["sigmoid"], "beta": 0.1},
        "ipo": {"loss_type": ["ipo"], "beta": 0.1},
        "hinge": {"loss_type": ["hinge"], "beta": 0.1},
        "robust": {"loss_type": ["robust"], "beta": 0.1, "label_smoothing": 0.2},
        "likelihood": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.1},
    },
    "conservative": {"beta": 0.1, "label_smoothing": 0.2},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "kto": {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.8},
    "grpo": {
        "sequence_mean": {"loss_type": "grpo", "beta": 0.0},
        "clip_higher": {"loss_type": "grpo", "epsilon_high": 0.5, "beta": 0.0},
        "dual_clip": {"loss_type": "grpo", "delta": 1.5, "beta": 0.0},
        "constant": {"loss_type": "dr_grpo", "beta": 0.0},
        "bnpo": {"loss_type": "bnpo", "beta": 0.0},
        "dapo": {"loss_type": "dapo", "epsilon_high": 0.5, "beta": 0.0},
        "k3": {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
        "k3_unbiased": {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": True},
        "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "beta": 0.0},
        "cispo": {"loss_type": "cispo", "epsilon_high": 1.3, "beta": 0.0},
    },
    "rloo": {"beta": 0.05},
    "rollout_weights": {
        "token_truncate": [None, 1.3],
        "token_mask": [0.7, 1.3],
        "sequence_truncate": [None, 1.5],
        "sequence_mask": [0.5, 1.5],
    },
    "ppo": {"k1": _PPO | {"kl_estimator": "k1"}, "k3": _PPO | {"kl_estimator": "k3", "whiten_rewards": True}},
}


def write(folder: Path) -> dict[str, Tensor]:
    """Write inputs, settings and models into ``folder`` and return the inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = inputs(seed=0)
    save_file(tensors, folder / "inputs.safetensors")
    (folder / "settings.json").write_text(json.dumps(SETTINGS, indent=1))
    for seed, name in enumerate(MODELS):
        model(name, seed).save_pretrained(folder / name)
    return tensors


def model(name: str, seed: int) -> LlamaForCausalLM | LlamaForSequenceClassification:
    """Weights large enough that no two tokens are equally likely."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.3, eos_token_id=EOS, pad_token_id=0, **shape)
    if name in ("score", "value"):
        config.num_labels = 1
        return LlamaForSequenceClassification(config)
    return LlamaForCausalLM(config)


def inputs(*, seed: int) -> dict[str, Tensor]:
    """Everything in float64 except token ids: what TRL computes in float32, it converts itself."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    return (
        {"tokens.logits": 3 * normal(40, 50), "tokens.targets": integers(0, 50, 40)}
        | _ranking(normal(2, PAIRS))
        | _pairs(normal(2 * PAIRS, LENGTH), normal(2 * PAIRS), integers(1, LENGTH, 2 * PAIRS))
        | {"kto.logprobs": -0.5 * normal(PAIRS, LENGTH).abs(), "kto.ref": -4 + normal(PAIRS)}
        | {"kto.kl_logprobs": -0.3 * normal(PAIRS, LENGTH + 1).abs(), "kto.kl_ref": -4 + normal(PAIRS)}
        | {"kto.desirable": torch.arange(PAIRS) % 3 != 0}
        | _policy(normal(5, RESPONSES, LENGTH), normal(2, RESPONSES), integers(3, LENGTH + 1, RESPONSES))
        | _sequences(integers(2, VOCABULARY, 6, LENGTH))
    )


def _ranking(scores: Tensor) -> dict[str, Tensor]:
    chosen, rejected = scores
    rejected[0] = chosen[0]  # a tie
    return {"ranking.chosen": chosen, "ranking.rejected": rejected, "ranking.margins": torch.linspace(0, 1, PAIRS)}


def _pairs(noise: Tensor, ref_noise: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Chosen responses in the first half of the rows, rejected in the second; one prompt token in front of each."""
    response_mask = torch.nn.functional.pad(torch.arange(LENGTH) < lengths[:, None], (1, 0))
    logprobs = torch.where(response_mask[:, 1:], -2 * noise.abs(), 0.0)
    chosen, rejected = logprobs.sum(-1).chunk(2)
    ref_chosen, ref_rejected = (logprobs.sum(-1) + 4 * ref_noise).chunk(2)
    mean_chosen, mean_rejected = (logprobs.sum(-1) / lengths).chunk(2)
    return {
        "pairs.logprobs": logprobs,
        "pairs.response_mask": response_mask,
        "pairs.lengths": lengths,
        "pairs.chosen": chosen.clone(),
        "pairs.rejected": rejected.clone(),
        "pairs.ref_chosen": ref_chosen.clone(),
        "pairs.ref_rejected": ref_rejected.clone(),
        "pairs.mean_chosen": mean_chosen.clone(),
        "pairs.mean_rejected": mean_rejected.clone(),
    }


def _policy(noise: Tensor, of_rows: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Ragged responses with a gap in the first: log-probabilities of policy, old policy, reference and engine."""
    lengths[0] = LENGTH
    response_mask = torch.arange(LENGTH) < lengths[:, None]
    response_mask[0, 3:5] = False
    old = -2 * noise[0].abs() - 0.5
    totals = of_rows[0].clone()
    totals[4:8] = 0.5  # a group in which all are equal
    return {
        "policy.lengths": lengths,
        "policy.response_mask": response_mask,
        "policy.old_logprobs": old,
        "policy.logprobs": old + 0.4 * noise[1],
        "policy.ref_logprobs": old + 0.4 * noise[2],
        "policy.rollout_logprobs": old + 0.2 * noise[3],
        "policy.advantages": of_rows[1].abs() * (1 - 2 * (torch.arange(RESPONSES) % 2)),  # as many of either sign
        "policy.totals": totals,
    }


def _sequences(ids: Tensor) -> dict[str, Tensor]:
    """Prompts and responses of several lengths, once padded right (ours), once left and right (GRPO in TRL)."""
    prompts, responses = torch.tensor([2, 4, 1, 3, 2, 4]), torch.tensor([5, 2, 6, 1, 7, 4])
    lengths = prompts + responses
    positions = torch.arange(LENGTH)
    within = positions < lengths[:, None]
    starts = (int(prompts.max()) - prompts)[:, None]
    shifted = torch.arange(int(prompts.max() + responses.max())) - starts
    attention = (shifted >= 0) & (shifted < lengths[:, None])
    padded = torch.where(attention, ids.gather(1, shifted.clamp(0, LENGTH - 1)), 0)
    return {
        "sequences.ids": torch.where(within, ids, 0),
        "sequences.lengths": lengths,
        "sequences.prompts": prompts,
        "sequences.response_mask": within & (positions >= prompts[:, None]),
        "padded.ids": padded,
        "padded.attention_mask": attention.long(),
        "padded.response_width": responses.max(),
    }
