"""KL(policy || reference): estimates from sampled tokens, and the exact value from whole distributions."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]
KLLossEstimator: TypeAlias = Literal["k2", "k3", "k3_unbiased"]

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


def kl_clamped(*, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return a mask [...] that is True where |log(policy / reference)| is beyond what is kept before exp."""
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    return (ref_logprobs.to(dtype) - logprobs.to(dtype)).abs() > MAX_LOG_RATIO


def kl_loss_terms(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: KLLossEstimator,
    response_mask: Tensor | None = None,
) -> Tensor:
    """Return a term per token [...] whose gradient pulls ``logprobs`` towards the reference; all tensors [...].

    What counts in a loss is the gradient's mean over tokens that the old policy sampled, not the value's. With
    r = ref / policy:

        k2            (log r)^2 / 2            the gradient of KL(policy || reference) where old = policy; biased value
        k3            r - 1 - log r            the gradient of KL(reference || policy) where old = policy
        k3_unbiased   policy / old * k3        the gradient and value of KL(policy || reference) for any old policy
                                               (DeepSeek-V3.2 2025, eq. 7)

    k1 is missing: the mean of its gradient is 0. Log-ratios are cut at 20 (that of policy / old at +-20 as well) before
    exp, which ends the gradient there. Outside ``response_mask`` [...], where it is given, nothing is read, the term is
    0 and there is no gradient.
    """
    if estimator not in ("k2", "k3", "k3_unbiased"):
        raise ValueError(f"estimator ({estimator!r}) must be one of 'k2', 'k3', 'k3_unbiased'")
    old_logprobs, ref_logprobs = old_logprobs.detach(), ref_logprobs.detach()
    if response_mask is not None:
        logprobs, old_logprobs, ref_logprobs = (
            torch.where(response_mask, tensor, torch.zeros_like(tensor))
            for tensor in (logprobs, old_logprobs, ref_logprobs)
        )
    if estimator != "k3_unbiased":
        return kl_estimate(logprobs=logprobs, ref_logprobs=ref_logprobs, estimator=estimator)
    k3 = kl_estimate(logprobs=logprobs, ref_logprobs=ref_logprobs, estimator="k3")
    return (logprobs - old_logprobs).to(k3.dtype).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * k3


def exact_kl(*, logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Return sum_v p(v) (log p(v) - log q(v)) [...] of the softmaxes p, q of ``logits``, ``ref_logits`` [..., V].

    Differentiable in both, in float32 or better. A token that both forbid (logit -inf) adds nothing.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return exact_kl_from_logprobs(
        logprobs=logits.to(dtype).log_softmax(-1), ref_logprobs=ref_logits.to(dtype).log_softmax(-1)
    )


def exact_kl_from_logprobs(*, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return sum_v p(v) (log p(v) - log q(v)) [...], given log p and log q of the whole vocabulary [..., V]."""
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    logprobs, ref_logprobs = logprobs.to(dtype), ref_logprobs.to(dtype)
    difference = torch.where(logprobs == -torch.inf, torch.zeros_like(logprobs), logprobs - ref_logprobs)
    return (logprobs.exp() * difference).sum(-1)
