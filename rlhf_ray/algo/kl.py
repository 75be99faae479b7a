"""KL(policy || reference): estimates from sampled tokens, and the exact value from whole distributions."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]

# exp(20) = 4.9e8: beyond it an estimate says "very far", and a float32 sum over a batch stays finite.
MAX_LOG_RATIO = 20.0


def kl_estimate(*, logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Estimate KL(policy || reference) per token from tokens that the policy sampled (Schulman 2020).

    With r = ref / policy and all tensors of one shape [...], returned in float32 or better:

        k1 = -log r            unbiased, can be negative; its sum over a response is the log-ratio of the paper's reward
        k2 = (log r)^2 / 2     biased, low variance, never negative
        k3 = r - 1 - log r     unbiased, never negative; log r is cut at 20, where exp would run away
    """
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    log_ratio = ref_logprobs.to(dtype) - logprobs.to(dtype)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        log_ratio = log_ratio.clamp(max=MAX_LOG_RATIO)
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"estimator ({estimator!r}) must be one of 'k1', 'k2', 'k3'")


def exact_kl(*, logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Return sum_v p(v) (log p(v) - log q(v)) [...] of the softmaxes p, q of ``logits``, ``ref_logits`` [..., V]."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logprobs = logits.to(dtype).log_softmax(-1)
    ref_logprobs = ref_logits.to(dtype).log_softmax(-1)
    difference = torch.where(logprobs == -torch.inf, torch.zeros_like(logprobs), logprobs - ref_logprobs)
    return (logprobs.exp() * difference).sum(-1)
