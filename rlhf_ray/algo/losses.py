"""Losses as sums with their weights, so that no split into ranks or micro-batches changes a gradient.

Here are the critic, language modelling and the ranking of pairs; ``policy_losses`` holds those of the policy. Every
loss returns ``LossSums``. The caller adds up the weights of a whole minibatch, over its micro-batches and all ranks,
and divides by that global weight: the gradient is then that of the mean over the minibatch, however it was cut. For
another mean than that over tokens, ``aggregation_weights`` weigh each token and ``aggregation_total`` is divided by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_ray.algo.masked import masked_sum

Aggregation: TypeAlias = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


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


def aggregation_weights(*, response_mask: Tensor, aggregation: Aggregation) -> Tensor:
    """Return the weight of each token's loss [B, S], float64: 1 / length of the row, or 1; 0 outside the mask."""
    _check_aggregation(aggregation)
    weights = response_mask.double()
    if aggregation == "sequence_mean":
        weights = weights / response_mask.sum(-1, keepdim=True).clamp(min=1)
    return weights


def aggregation_total(*, aggregation: Aggregation, num_tokens: int, num_sequences: int, constant: int) -> float:
    """Return what the weighted sum of a whole minibatch, on all ranks, is divided by.

    token_mean      tokens                  every token counts once (Yu et al. 2025, eq. 8)
    sequence_mean   sequences               the mean over responses of the mean over tokens (Shao et al. 2024, eq. 3)
    sequence_sum    sequences               the mean over responses of the sum over tokens
    constant        sequences * constant    the same divided by a fixed length (Dr. GRPO: Liu et al. 2025)
    """
    _check_aggregation(aggregation)
    if aggregation == "token_mean":
        return float(num_tokens)
    if aggregation == "constant":
        if constant < 1:
            raise ValueError(f"constant ({constant}) must be at least 1 token; take the longest response allowed")
        return float(num_sequences * constant)
    return float(num_sequences)


def _check_aggregation(aggregation: Aggregation) -> None:
    known = ("token_mean", "sequence_mean", "sequence_sum", "constant")
    if aggregation not in known:
        raise ValueError(f"aggregation ({aggregation!r}) must be one of {', '.join(map(repr, known))}")


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
        metrics=token_metrics(per_token, response_mask),
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
        metrics=token_metrics({"negative_log_likelihood": -logprobs}, mask),
    )


def bradley_terry_loss(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margins: Tensor | None = None,
    probabilities: Tensor | None = None,
    centering: float = 0.0,
    weights: Tensor | None = None,
) -> LossSums:
    """Return sum_p w_p (-log sigmoid(r_c - r_r - margin_p) + centering (r_c + r_r)^2), all tensors [P].

    The ranking loss of Ouyang et al. 2022, eq. 1, with the margin of Touvron et al. 2023, eq. 2, and the centring of
    Eisenstein et al. 2023, which holds scores near 0. ``weights`` of 1 / (pairs of the prompt) let every prompt count
    once however many pairs its ranking gives (Ouyang et al., section 3.5). A tie of scores counts half in ``accuracy``.

    With ``probabilities`` q, how likely it is that the chosen response is the better, the first term is its mean over
    that label: -q log sigmoid(r_c - r_r - margin) - (1 - q) log sigmoid(r_r - r_c - margin), the cross-entropy of a
    soft label, smallest at r_c - r_r = log(q / (1 - q)) without a margin. ``accuracy`` is then over the pairs whose q
    is not one half, and right is whom q prefers.
    """
    if centering < 0:
        raise ValueError(f"centering ({centering}) must be 0 or more; it multiplies a penalty")
    difference = chosen_scores - rejected_scores
    weights = torch.ones_like(difference) if weights is None else weights.detach()
    margins = torch.zeros_like(difference) if margins is None else margins
    per_pair = expected_over_labels(
        -logsigmoid(difference - margins), -logsigmoid(-difference - margins), probabilities
    )
    if centering:
        per_pair = per_pair + centering * (chosen_scores + rejected_scores).square()

    weight = weights.double().sum()
    measures = {
        "score_margin": difference,
        "chosen_scores": chosen_scores,
        "rejected_scores": rejected_scores,
    }
    metrics = {name: ((weights * measure.detach()).double().sum(), weight) for name, measure in measures.items()}
    metrics["accuracy"] = pair_accuracy(difference, probabilities=probabilities, weights=weights)
    return LossSums(loss=(weights * per_pair).sum(), weight=weight, metrics=metrics)


def step_label_loss(*, rewards: Tensor, labels: Tensor) -> LossSums:
    """Return the cross-entropy -y log sigmoid(r) - (1 - y) log sigmoid(-r) summed over steps, both tensors [N].

    ``labels`` are bools, True for a good step (Math-Shepherd: Wang et al. 2024, eq. 3). A reward of exactly 0 counts
    half in ``accuracy``.
    """
    if labels.dtype != torch.bool or labels.shape != rewards.shape:
        raise ValueError(f"labels {tuple(labels.shape)} {labels.dtype} must be bools [N], as {tuple(rewards.shape)}")
    signed = torch.where(labels, rewards, -rewards)
    weight = torch.tensor(float(len(rewards)), dtype=torch.float64, device=rewards.device)
    right = 0.5 * (signed.detach().sign() + 1)
    return LossSums(loss=-logsigmoid(signed).sum(), weight=weight, metrics={"accuracy": (right.double().sum(), weight)})


def expected_over_labels(as_labelled: Tensor, turned: Tensor, probabilities: Tensor | None) -> Tensor:
    """Return q ``as_labelled`` + (1 - q) ``turned``, all tensors [P]: the mean of a pair's loss over its label.

    ``turned`` are the losses of the same pairs labelled the other way round. Without ``probabilities``, and where one
    is 1, the result and its gradient are those of the hard label, bit for bit.
    """
    if probabilities is None:
        return as_labelled
    if probabilities.shape != as_labelled.shape:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} must be [P], one a pair, as {tuple(as_labelled.shape)}"
        )
    share = probabilities.detach().to(as_labelled.dtype)
    return share * as_labelled + (1 - share) * turned


def pair_accuracy(margin: Tensor, *, probabilities: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weighted number of pairs that are right, weight of the pairs that can be), all tensors [P].

    A pair is right where ``margin`` has the sign of its label; a margin of 0 counts half, even odds not at all.
    """
    label = torch.ones_like(margin) if probabilities is None else (probabilities.to(margin.dtype) - 0.5).sign()
    counted = weights * label.abs()
    right = 0.5 * (margin.detach().sign() * label + 1)
    return (counted * right).double().sum(), counted.double().sum()


def token_metrics(per_token: Mapping[str, Tensor], mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name -> (sum under ``mask``, number of tokens), detached and in float64; all tensors [...]."""
    weight = mask.sum().double()
    return {
        name: (masked_sum(values=values.detach().double(), mask=mask), weight) for name, values in per_token.items()
    }
