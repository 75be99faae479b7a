"""From one score per response to one reward per token."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algo.kl import KLEstimator, kl_estimate
from rlhf_ray.algo.masked import whiten


def shape_rewards(
    *,
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    kl_coef: float,
    estimator: KLEstimator = "k1",
    step_rewards: Tensor | None = None,
) -> Tensor:
    """Return rewards [B, S]: -kl_coef * KL at every sampled token, plus the score at the last one.

    R(x, y) = r(x, y) - kl_coef * log(policy(y|x) / reference(y|x)): Stiennon et al. 2020, section 3.4; Ouyang et al.
    2022, section 3.5. ``scores`` [B]; ``logprobs`` (the trainer's before the step), ``ref_logprobs``, ``response_mask``
    [B, S]. ``step_rewards`` [B, S] of a process reward model are added where they stand (Lightman et al. 2023). Outside
    the mask the reward is 0. A row without a sampled token has no place for its score: the score is dropped and the row
    is 0. With ``kl_coef`` 0 the KL adds exactly 0, even where it is infinite.
    """
    kl = kl_estimate(logprobs=logprobs, ref_logprobs=ref_logprobs, estimator=estimator)
    zeros = torch.zeros_like(kl)
    rewards = torch.where(response_mask, -kl_coef * kl, zeros) if kl_coef else zeros
    if step_rewards is not None:
        rewards = rewards + torch.where(response_mask, step_rewards.to(rewards.dtype), zeros)
    at_end = last_token_mask(response_mask=response_mask)
    return rewards + torch.where(at_end, scores.to(rewards.dtype)[:, None], zeros)


def last_token_mask(*, response_mask: Tensor) -> Tensor:
    """Return a mask [B, S] that is True at the last True of each row of ``response_mask`` [B, S]."""
    remaining = response_mask.long().flip(-1).cumsum(-1).flip(-1)
    return response_mask & (remaining == 1)


def penalise_missing_eos(*, scores: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """Return ``scores`` [B] minus ``penalty`` where ``finished`` [B] is False.

    Subtracted, as in TRL's ``missing_eos_penalty``, so that cut responses keep their order; lm-human-preferences
    replaces the score with a constant instead. ``penalty`` must not be negative.
    """
    if penalty < 0:
        raise ValueError(f"penalty ({penalty}) must be 0 or more; it is subtracted from the score")
    return torch.where(finished, scores, scores - penalty)


def overlong_penalty(*, lengths: Tensor, max_tokens: int, overlong_tokens: int, penalty: float) -> Tensor:
    """Return what to subtract from each score [B], in float32: soft overlong punishment (Yu et al. 2025, eq. 13).

    0 up to ``max_tokens - overlong_tokens`` sampled tokens, then linear in ``lengths`` [B] up to ``penalty`` at
    ``max_tokens``, and constant beyond.
    """
    if not 0 < overlong_tokens <= max_tokens:
        raise ValueError(f"overlong_tokens ({overlong_tokens}) must lie in [1, max_tokens ({max_tokens})]")
    if penalty < 0:
        raise ValueError(f"penalty ({penalty}) must be 0 or more; it is subtracted from the score")
    excess = (lengths - (max_tokens - overlong_tokens)).float() / overlong_tokens
    return penalty * excess.clamp(0.0, 1.0)


def clip_scores(*, scores: Tensor, limit: float) -> Tensor:
    """Return ``scores`` [B] cut to [-limit, limit]."""
    if not limit > 0:
        raise ValueError(f"limit ({limit}) must be above 0; leave the scores alone to not clip them")
    return scores.clamp(-limit, limit)


def whiten_rewards(*, rewards: Tensor, response_mask: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return ``rewards`` [B, S] divided by their standard deviation, mean kept, 0 outside ``response_mask`` [B, S].

    The mean stays because it says whether the policy does well (lm-human-preferences, ``whiten(shift_mean=False)``).
    ``mean`` and ``variance`` are scalars over the tokens of the step.
    """
    return whiten(values=rewards, mask=response_mask, mean=mean, variance=variance, shift_mean=False)
