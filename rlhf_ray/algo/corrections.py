"""Importance weights between the trainer's and the engine's log-probabilities, for tokens sampled off policy.

The engine samples with other kernels, and sometimes with older weights, than the trainer computes with. The policy
gradient of tokens from the engine is that of the trainer's policy when each is weighted by trainer / engine; bounds on
the weight trade a little bias for variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rlhf_ray.algo.kl import MAX_LOG_RATIO
from rlhf_ray.algo.masked import masked_mean, masked_sum

Level: TypeAlias = Literal["token", "sequence", "geometric"]
Mode: TypeAlias = Literal["truncate", "mask"]


@dataclass(frozen=True)
class RolloutWeights:
    """Weights to multiply the tokens' losses with, and what they looked like before they were cut."""

    weights: Tensor  # [B, S], detached, 0 outside the mask
    sums: Mapping[str, tuple[Tensor, Tensor]]  # name -> (sum, number of tokens), float64 scalars: add both, then divide
    maxima: Mapping[str, Tensor]  # name -> float64 scalar: combine by max


def rollout_weights(
    *,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    response_mask: Tensor,
    level: Level,
    mode: Mode,
    low: float,
    high: float,
) -> RolloutWeights:
    """Return w = trainer / engine for every sampled token; all tensors [B, S].

    ``level`` says of what: ``token`` of the token itself, ``sequence`` of the whole response (the product over its
    tokens), ``geometric`` of its mean token (the product's root). ``mode`` says how it is bounded: ``truncate`` takes
    min(w, high) (truncated importance sampling, Yao et al. 2025), ``mask`` takes w inside [low, high] and 0 outside
    (IcePop, Ling team 2025). Log-ratios are cut at +-20 before exp.

    The sums count sampled tokens and describe w before it is bounded: ``weight_mean``, ``weights_squared`` (see
    ``effective_sample_size``), ``cut_fraction`` where the bound changed w, and the tail ``above_2``, ``above_10``; the
    maximum is ``weight_max``.
    """
    if not 0 <= low < high:
        raise ValueError(f"low ({low}) must be 0 or more and below high ({high})")
    weights = _log_weights(old_logprobs, rollout_logprobs, response_mask, level)
    weights = weights.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    zeros = torch.zeros_like(weights)
    raw = torch.where(response_mask, weights, zeros)
    kept = torch.where(response_mask, _bounded(weights, mode, low, high), zeros)

    per_token = {
        "weight_mean": raw,
        "weights_squared": raw.double().square(),
        "cut_fraction": kept != raw,
        "above_2": raw > 2,
        "above_10": raw > 10,
    }
    count = response_mask.sum().double()
    largest = raw.max() if raw.numel() else raw.sum()
    return RolloutWeights(
        weights=kept,
        sums={name: (masked_sum(values=v.double(), mask=response_mask), count) for name, v in per_token.items()},
        maxima={"weight_max": largest.double()},
    )


def effective_sample_size(*, total: float, squares: float, count: float) -> float:
    """Return (sum w)^2 / (count sum w^2) in [0, 1] from added-up sums of ``rollout_weights`` (Kong 1992).

    The share of the tokens that the weighted ones are worth: 1 where all weights are equal; 0 where there are none.
    """
    return total**2 / (count * squares) if count and squares else 0.0


def _log_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, response_mask: Tensor, level: Level) -> Tensor:
    """Log of the weight [B, S] before any cut, detached and in float32 or better."""
    dtype = torch.promote_types(old_logprobs.dtype, torch.float32)
    log_ratio = old_logprobs.detach().to(dtype) - rollout_logprobs.detach().to(dtype)
    if level == "token":
        return torch.where(response_mask, log_ratio, torch.zeros_like(log_ratio))
    # Added up in float64: how far a row is padded decides the order of the sum, and must not move it over a bound.
    if level == "sequence":
        of_row = masked_sum(values=log_ratio.double(), mask=response_mask, dim=-1)
        return of_row.to(dtype)[:, None].expand_as(log_ratio)
    if level == "geometric":
        of_row = masked_mean(values=log_ratio.double(), mask=response_mask, dim=-1)
        return of_row.to(dtype)[:, None].expand_as(log_ratio)
    raise ValueError(f"level ({level!r}) must be one of 'token', 'sequence', 'geometric'")


def _bounded(weights: Tensor, mode: Mode, low: float, high: float) -> Tensor:
    if mode == "truncate":
        return weights.clamp(max=high)
    if mode == "mask":
        return torch.where((weights < low) | (weights > high), torch.zeros_like(weights), weights)  # NaN stays NaN
    raise ValueError(f"mode ({mode!r}) must be one of 'truncate', 'mask'")
