"""Surrogate losses of the policy: clipped ratios of tokens (PPO), of responses, whole or by their mean token (GSPO),
and clipped weights (CISPO).

All return sums over sampled tokens, each times its weight, with one set of metrics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_ray.algo.kl import MAX_LOG_RATIO, kl_estimate
from rlhf_ray.algo.losses import LossSums, token_metrics
from rlhf_ray.algo.masked import masked_mean, masked_sum


def policy_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_ratio: float,
    clip_ratio_high: float | None = None,
    dual_clip: float = 0.0,
    token_weights: Tensor | None = None,
) -> LossSums:
    """Return the clipped surrogate of PPO (Schulman et al. 2017, eq. 7), negated and summed over sampled tokens.

    ``logprobs`` [B, S] carry the gradient; ``old_logprobs``, ``advantages`` [B, S] are constants, and so are
    ``token_weights`` [B, S], which multiply each token's loss and leave weight and metrics alone. The ratio new/old is
    clipped to [1 - clip_ratio, 1 + clip_ratio_high], where no ``clip_ratio_high`` means ``clip_ratio``. The loss of a
    negative advantage is at most ``dual_clip * |advantage|`` (Ye et al. 2020); 0 leaves that bound out.

    In the metrics ``clip_fraction`` counts the tokens whose gradient the clip removes, ``dual_clip_fraction`` those
    whose gradient that bound removes; ``approx_kl_k1`` and ``approx_kl_k3`` estimate KL(old || new). The log-ratio is
    cut at +-20 before exp.
    """
    if dual_clip and not dual_clip > 1:
        raise ValueError(f"dual_clip ({dual_clip}) must exceed 1, or be 0 for no bound")
    log_ratio = _log_ratio(logprobs, old_logprobs, response_mask)
    return _clipped_surrogate(
        log_ratio=log_ratio,
        importance=log_ratio,
        advantages=advantages,
        response_mask=response_mask,
        bounds=_bounds(clip_ratio, clip_ratio_high),
        dual_clip=dual_clip,
        token_weights=token_weights,
    )


def gspo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_ratio: float,
    clip_ratio_high: float | None = None,
    token_weights: Tensor | None = None,
) -> LossSums:
    """Return the clipped surrogate of GSPO in its token form (Zheng et al. 2025, eq. 14), negated and summed.

    Arguments and metrics are those of ``policy_loss``; the ratio, also in the metrics, is that of the row's mean token,
    s = exp(mean_t log(new / old)), with the gradient sg(s) * d logprob at each token (sg: stop-gradient). Where
    ``advantages`` are constant in a row and ``token_weights`` are 1 / length, the gradient is that of eq. 5.
    """
    log_ratio = _log_ratio(logprobs, old_logprobs, response_mask)
    return _clipped_surrogate(
        log_ratio=log_ratio,
        importance=_of_response(masked_mean, log_ratio, response_mask),
        advantages=advantages,
        response_mask=response_mask,
        bounds=_bounds(clip_ratio, clip_ratio_high),
        token_weights=token_weights,
    )


def response_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_ratio: float,
    clip_ratio_high: float | None = None,
    token_weights: Tensor | None = None,
) -> LossSums:
    """Return the clipped surrogate of whole responses as single actions (Ahmadian et al. 2024), by token and negated.

    Arguments and metrics are those of ``policy_loss``; the ratio, also in the metrics, is the response's,
    s = exp(sum_t log(new / old)), with the gradient sg(s) * d logprob at each token. Where ``advantages`` are constant
    in a row and ``token_weights`` are 1, the gradient is that of -min(s A, clip(s) A) summed over rows; the loss counts
    a row's term once a token.
    """
    log_ratio = _log_ratio(logprobs, old_logprobs, response_mask)
    return _clipped_surrogate(
        log_ratio=log_ratio,
        importance=_of_response(masked_sum, log_ratio, response_mask),
        advantages=advantages,
        response_mask=response_mask,
        bounds=_bounds(clip_ratio, clip_ratio_high),
        token_weights=token_weights,
    )


def cispo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_ratio: float,
    clip_ratio_high: float | None = None,
    token_weights: Tensor | None = None,
) -> LossSums:
    """Return -sg(clip(ratio)) * advantage * logprob, summed over sampled tokens (MiniMax-M1 2025, eq. 4 and 5).

    Arguments and metrics are those of ``policy_loss``. No token loses its gradient: the clip bounds its weight, and
    ``clip_fraction`` counts the tokens whose weight it changes. The loss itself is no objective; its gradient is.
    """
    low, high = _bounds(clip_ratio, clip_ratio_high)
    ratio = _exp(_log_ratio(logprobs, old_logprobs, response_mask).detach())
    weights = ratio.clamp(low, high)
    sampled = torch.where(response_mask, logprobs, torch.zeros_like(logprobs))
    return _sums(
        per_token=-weights * _constants(advantages, logprobs) * sampled,
        log_ratio=_log_ratio(logprobs, old_logprobs, response_mask),
        ratio=ratio,
        clipped=weights != ratio,
        dual_clipped=torch.zeros_like(response_mask),
        response_mask=response_mask,
        token_weights=token_weights,
    )


def _bounds(clip_ratio: float, clip_ratio_high: float | None) -> tuple[float, float]:
    if clip_ratio < 0 or (clip_ratio_high is not None and clip_ratio_high < 0):
        raise ValueError(f"clip_ratio ({clip_ratio}) and clip_ratio_high ({clip_ratio_high}) must be 0 or more")
    return 1 - clip_ratio, 1 + (clip_ratio if clip_ratio_high is None else clip_ratio_high)


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    return torch.where(response_mask, logprobs - old_logprobs.detach(), torch.zeros_like(logprobs))


def _of_response(reduce: Callable[..., Tensor], log_ratio: Tensor, response_mask: Tensor) -> Tensor:
    """The log of sg(s) * exp(logprob - sg(logprob)) at every token, [B, S], log s being ``reduce`` over the row."""
    # Added up in float64: how far a row is padded decides the order of the sum, and must not move it over a bound.
    of_row = reduce(values=log_ratio.detach().double(), mask=response_mask, dim=-1).to(log_ratio.dtype)
    return of_row[:, None] + (log_ratio - log_ratio.detach())


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _constants(tensor: Tensor, logprobs: Tensor) -> Tensor:
    """Detached and in the type of the loss: group advantages come in float64."""
    return tensor.detach().to(logprobs.dtype)


def _clipped_surrogate(
    *,
    log_ratio: Tensor,
    importance: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    bounds: tuple[float, float],
    token_weights: Tensor | None,
    dual_clip: float = 0.0,
) -> LossSums:
    """Sum -min(ratio A, clip(ratio) A), ``importance`` [B, S] being the log of the ratio with its gradient."""
    advantages = _constants(advantages, log_ratio)
    ratio = _exp(importance)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(*bounds)
    per_token = surrogate = torch.maximum(unclipped, clipped)
    if dual_clip:
        per_token = torch.where(advantages < 0, torch.minimum(surrogate, -dual_clip * advantages), surrogate)
    return _sums(
        per_token=per_token,
        log_ratio=log_ratio,
        ratio=ratio,
        clipped=clipped > unclipped,
        dual_clipped=per_token < surrogate,
        response_mask=response_mask,
        token_weights=token_weights,
    )


def _sums(
    *,
    per_token: Tensor,
    log_ratio: Tensor,
    ratio: Tensor,
    clipped: Tensor,
    dual_clipped: Tensor,
    response_mask: Tensor,
    token_weights: Tensor | None,
) -> LossSums:
    if token_weights is not None:
        per_token = per_token * _constants(token_weights, per_token)
    zeros = torch.zeros_like(log_ratio)
    old_of_new = {"logprobs": zeros, "ref_logprobs": log_ratio.detach()}  # only the difference counts
    metrics = {
        "clip_fraction": clipped,
        "dual_clip_fraction": dual_clipped,
        "approx_kl_k1": kl_estimate(estimator="k1", **old_of_new),
        "approx_kl_k3": kl_estimate(estimator="k3", **old_of_new),
        "ratio": ratio,
    }
    ratio_max = torch.where(response_mask, ratio.detach(), zeros).max() if ratio.numel() else zeros.sum()
    return LossSums(
        loss=masked_sum(values=per_token, mask=response_mask),
        weight=response_mask.sum().double(),
        metrics=token_metrics(metrics, response_mask),
        maxima={"ratio_max": ratio_max.detach().double()},
    )
