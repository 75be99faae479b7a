"""Where a metric is healthy, and what to do when it is not.

Ranges are where runs that went well have stayed, here and in published work; outside one something is worth a look, not
proven wrong. A metric without a line has no range of its own: it is read against its own past.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Health:
    """Healthy from ``low`` to ``high``, both included; not a number is never healthy."""

    low: float
    high: float
    remedy: str

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if math.isinf(self.low) else f"{self.low:g} to {self.high:g}"


def at_least(low: float, remedy: str) -> Health:
    return Health(low, math.inf, remedy)


def at_most(high: float, remedy: str) -> Health:
    return Health(-math.inf, high, remedy)


_RATIOS = "Fewer ppo.num_epochs or more ppo.num_minibatches' worth of data a step, or a lower policy learning rate."
_ENGINES = (
    "Engine and trainer disagree: compare generation.dtype with training.dtype, look at weight_sync.transport, and "
    "turn on a correction (ppo.correction)."
)
_DRIFT = "Raise ppo.kl.coef, lower the policy learning rate, or stop at the checkpoint before: see gold/heldout_mean."
_COLLAPSE = "Raise ppo.kl.coef or ppo.entropy_coef; read the held-out responses in the report before going on."
_NORM = "Lower the learning rate, or look for outliers among scores (ppo.reward.score_clip) and over-long responses."

HEALTH: Mapping[str, Health] = {
    "sft/padding_fraction": at_most(0.1, "Raise training.max_tokens_per_micro_batch, or use training.layout=packed."),
    "sft/grad_norm": at_most(20, "Lower sft.optimizer.learning_rate or lengthen its warm-up."),
    "reward_model/heldout_accuracy": at_least(
        0.6, "Labels disagree or are too few: see `rlhf-ray feedback stats`, label more, and do not run PPO on it yet."
    ),
    "reward_model/grad_norm": at_most(50, "Lower reward_model.optimizer.learning_rate."),
    "dpo/accuracy": at_least(0.5, "Lower dpo.optimizer.learning_rate; look whether chosen and rejected are swapped."),
    "ppo/failed_fraction": at_most(0.05, "Read the reward service's log; raise its timeout or its retries."),
    "ppo/trained_fraction": at_least(0.5, "Groups without signal: harder or easier prompts, or a larger group."),
    "ppo/finished_fraction": at_least(
        0.9, "Raise ppo.max_response_tokens, or punish what does not end (ppo.reward.missing_eos_penalty)."
    ),
    "ppo/kl_per_token": at_most(0.5, _DRIFT),
    "ppo/kl_clamped_fraction": at_most(0.0, _DRIFT),
    "ppo/first_kl": at_most(1e-4, "Old log-probabilities are not those of the weights that are trained: report it."),
    "ppo/reference_kl_at_start": at_most(
        1e-3, "The reference is not the model that PPO starts from: look at its path."
    ),
    "ppo/approx_kl": at_most(0.1, _RATIOS),
    "ppo/clip_fraction": at_most(0.3, _RATIOS),
    "ppo/ratio_max": at_most(10, _RATIOS),
    "ppo/entropy": at_least(0.05, _COLLAPSE),
    "ppo/explained_variance": at_least(
        0.0, "Raise the critic's learning rate or warm it up (ppo.critic_warmup_steps); it predicts worse than a mean."
    ),
    "ppo/policy_grad_norm": at_most(10, _NORM),
    "ppo/critic_grad_norm": at_most(50, _NORM),
    "ppo/logprob_difference": at_most(0.05, _ENGINES),
    "ppo/effective_sample_size": at_least(0.5, _ENGINES),
    "ppo/rollout_above_10": at_most(0.01, _ENGINES),
    "ppo/skipped_steps": at_most(0, "Each has a folder with what it was doing: `rlhf-ray replay` does it again."),
    "ppo/padding_fraction": at_most(0.1, "Raise training.max_tokens_per_micro_batch, or use training.layout=packed."),
    "gold/heldout_finished_fraction": at_least(0.9, "Raise ppo.max_response_tokens; read what does not end."),
    "gold/heldout_kl_per_response": at_most(50, _DRIFT),
    "text/repetition_3": at_most(0.2, _COLLAPSE),
    "text/self_bleu": at_most(0.9, _COLLAPSE),
}
