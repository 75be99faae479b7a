"""Losses as sums with their weights, so that no split into ranks or micro-batches changes a gradient.

Every loss returns ``LossSums``. The caller adds up the weights of a whole minibatch, over its micro-batches and all
ranks, and divides by that global weight: the gradient is then that of the mean over the minibatch, however it was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_ray.algo.kl import MAX_LOG_RATIO, kl_estimate
from rlhf_ray.algo.masked import masked_sum


@dataclass(frozen=True)
class LossSums:
    """A loss summed over its tokens (or pairs), not averaged.

    An empty mask gives loss 0 and weight 0, still attached to the graph: a rank without tokens can run backward.
    """

    loss: Tensor  # scalar with a gradient: the sum
    weight: Tensor  # scalar, float64: the number of tokens, or the sum of the pairs' weights
    metrics: Mapping[
        str, tuple[Tensor, Tensor]
    ]  # name -> (sum, weight), detached float64 scalars: add both, then divide
    maxima: Mapping[str, Tensor] = field(default_factory=dict)  # name -> detached float64 scalar: combine by max


def policy_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_ratio: float,
    clip_ratio_high: float | None = None,
) -> LossSums:
    """Return the clipped surrogate of PPO (Schulman et al. 2017, eq. 7), negated and summed over sampled tokens.

    ``logprobs`` [B, S] carry the gradient; ``old_logprobs``, ``advantages`` [B, S] are constants. The ratio new/old is
    clipped to [1 - clip_ratio, 1 + clip_ratio_high], where no ``clip_ratio_high`` means ``clip_ratio``. In the metrics
    ``clip_fraction`` counts the tokens whose gradient the clip removes; ``approx_kl_k1`` and ``approx_kl_k3`` estimate
    KL(old || new). The log-ratio is cut at +-20 before exp.
    """
    if clip_ratio < 0 or (clip_ratio_high is not None and clip_ratio_high < 0):
        raise ValueError(f"clip_ratio ({clip_ratio}) and clip_ratio_high ({clip_ratio_high}) must be 0 or more")
    zeros = torch.zeros_like(logprobs)
    old_logprobs, advantages = old_logprobs.detach(), advantages.detach()
    log_ratio = torch.where(response_mask, logprobs - old_logprobs, zeros)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    high = clip_ratio if clip_ratio_high is None else clip_ratio_high
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_ratio, 1 + high)

    old_of_new = {"logprobs": zeros, "ref_logprobs": log_ratio.detach()}  # only the difference counts
    per_token = {
        "clip_fraction": clipped > unclipped,
        "approx_kl_k1": kl_estimate(estimator="k1", **old_of_new),
        "approx_kl_k3": kl_estimate(estimator="k3", **old_of_new),
        "ratio": ratio,
    }
    ratio_max = torch.where(response_mask, ratio.detach(), zeros).max() if ratio.numel() else zeros.sum()
    return LossSums(
        loss=masked_sum(values=torch.maximum(unclipped, clipped), mask=response_mask),
        weight=response_mask.sum().double(),
        metrics=_token_metrics(per_token, response_mask),
        maxima={"ratio_max": ratio_max.detach().double()},
    )


def value_loss(
    *, values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, value_clip: float | None
) -> LossSums:
    """Return half the larger of the clipped and unclipped squared errors, summed over sampled tokens.

    0.5 max((V - R)^2, (clip(V, V_old - value_clip, V_old + value_clip) - R)^2), as in PPO2 and lm-human-preferences.
    All tensors [B, S]; ``values`` carry the gradient. ``value_clip=None`` leaves the clip out. The means of the metrics
    give ``explained_variance``.
    """
    if value_clip is not None and value_clip < 0:
        raise ValueError(f"value_clip ({value_clip}) must be 0 or more, or None for no clip")
    zeros = torch.zeros_like(values)
    values = torch.where(response_mask, values, zeros)  # before any arithmetic: what stands outside may be NaN
    old_values = torch.where(response_mask, old_values.detach(), zeros)
    returns = torch.where(response_mask, returns.detach(), zeros)
    errors = returns - values
    loss = unclipped = errors.square()
    if value_clip is not None:
        near_old = old_values + (values - old_values).clamp(-value_clip, value_clip)
        loss = torch.maximum(unclipped, (near_old - returns).square())

    per_token = {
        "value_clip_fraction": loss > unclipped,
        "values": values,
        "returns": returns,
        "returns_squared": returns.double().square(),
        "value_errors": errors,
        "value_errors_squared": errors.double().square(),
    }
    return LossSums(
        loss=0.5 * masked_sum(values=loss, mask=response_mask),
        weight=response_mask.sum().double(),
        metrics=_token_metrics(per_token, response_mask),
    )


def explained_variance(means: Mapping[str, float]) -> float:
    """Return 1 - Var(returns - values) / Var(returns) from the means of ``value_loss``'s metrics.

    1 is a perfect critic, 0 one that knows no more than the mean; 0 also where the returns are constant.
    """
    variance_of_returns = means["returns_squared"] - means["returns"] ** 2
    variance_of_errors = means["value_errors_squared"] - means["value_errors"] ** 2
    if variance_of_returns <= 1e-12 * means["returns_squared"]:
        return 0.0
    return 1.0 - variance_of_errors / variance_of_returns


def language_modelling_loss(*, logprobs: Tensor, mask: Tensor) -> LossSums:
    """Return the negative log-likelihood summed over ``mask``; ``logprobs``, ``mask`` [...] of one shape."""
    return LossSums(
        loss=-masked_sum(values=logprobs, mask=mask),
        weight=mask.sum().double(),
        metrics=_token_metrics({"negative_log_likelihood": -logprobs}, mask),
    )


def bradley_terry_loss(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margins: Tensor | None = None,
    centering: float = 0.0,
    weights: Tensor | None = None,
) -> LossSums:
    """Return sum_p w_p (-log sigmoid(r_c - r_r - margin_p) + centering (r_c + r_r)^2), all tensors [P].

    The ranking loss of Ouyang et al. 2022, eq. 1, with the margin of Touvron et al. 2023, eq. 2, and the centring of
    Eisenstein et al. 2023, which holds scores near 0. ``weights`` of 1 / (pairs of the prompt) let every prompt count
    once however many pairs its ranking gives (Ouyang et al., section 3.5). A tie of scores counts half in ``accuracy``.
    """
    if centering < 0:
        raise ValueError(f"centering ({centering}) must be 0 or more; it multiplies a penalty")
    difference = chosen_scores - rejected_scores
    weights = torch.ones_like(difference) if weights is None else weights.detach()
    per_pair = -logsigmoid(difference if margins is None else difference - margins)
    if centering:
        per_pair = per_pair + centering * (chosen_scores + rejected_scores).square()

    weight = weights.double().sum()
    measures = {
        "accuracy": 0.5 * (difference.sign() + 1),
        "score_margin": difference,
        "chosen_scores": chosen_scores,
        "rejected_scores": rejected_scores,
    }
    metrics = {name: ((weights * measure.detach()).double().sum(), weight) for name, measure in measures.items()}
    return LossSums(loss=(weights * per_pair).sum(), weight=weight, metrics=metrics)


def _token_metrics(per_token: Mapping[str, Tensor], mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    weight = mask.sum().double()
    return {
        name: (masked_sum(values=values.detach().double(), mask=mask), weight) for name, values in per_token.items()
    }
