"""Advantages: from a critic (GAE), from reward-to-go, or from the other responses to the same prompt.

Group statistics need one number a response. They are computed from exactly rounded sums, so that ranks which gathered
the rows in different orders hold the same bits.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

GroupEstimator: TypeAlias = Literal["grpo", "dr_grpo", "rloo", "opo"]

GRPO_EPSILON = 1e-6


def gae(*, rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return (advantages, returns), both [B, S] and 0 outside ``response_mask`` (Schulman et al. 2016, eq. 16).

    ``rewards``, ``values`` [B, S]. The states are the sampled tokens: tokens that the policy did not sample, such as a
    tool's output, take no time, so the state after a token is the next sampled one, and neither gamma nor lambda is
    applied across a gap. After the last sampled token the value is 0.

        delta_t = r_t + gamma V_next(t) - V_t        A_t = delta_t + gamma lam A_next(t)        return_t = A_t + V_t
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma ({gamma}) and lam ({lam}) must lie in [0, 1]")
    zeros = torch.zeros_like(values)
    next_values = _next_sampled(values=values, response_mask=response_mask)
    deltas = torch.where(response_mask, rewards + gamma * next_values - values, zeros)
    decays = torch.ones_like(deltas).masked_fill(response_mask, gamma * lam)
    advantages = torch.where(response_mask, _discounted_sums(deltas, decays), zeros)
    return advantages, torch.where(response_mask, advantages + values, zeros)


def discounted_returns(*, rewards: Tensor, response_mask: Tensor, gamma: float) -> Tensor:
    """Return the reward-to-go [B, S] of every sampled token, 0 outside ``response_mask`` [B, S].

    G_t = r_t + gamma G_next(t), over sampled tokens only as in ``gae``: the advantage of REINFORCE++ (Hu et al. 2025)
    before its whitening, and with gamma 1 and a baseline taken off the score that of ReMax (Li et al. 2024).
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma ({gamma}) must lie in [0, 1]")
    zeros = torch.zeros_like(rewards)
    decays = torch.ones_like(rewards).masked_fill(response_mask, gamma)
    returns = _discounted_sums(torch.where(response_mask, rewards, zeros), decays)
    return torch.where(response_mask, returns, zeros)


def group_advantages(*, totals: Tensor, groups: Tensor, estimator: GroupEstimator, lengths: Tensor) -> Tensor:
    """Return one advantage a response [N], float64, from the ``totals`` [N] of the responses to the same prompt.

    ``groups`` [N] are integers, equal for responses to one prompt, in any order; ``lengths`` [N] are numbers of sampled
    tokens, which only ``opo`` reads. With r a total, n the size of its group and means over the group:

        grpo      (r - mean r) / (std r + 1e-6), std unbiased    Shao et al. 2024, section 4.1.2
        dr_grpo   r - mean r                                     Liu et al. 2025
        rloo      r - mean of the n - 1 others                   Ahmadian et al. 2024
        opo       r - sum(length r) / sum(length)                Hao et al. 2025; mean r where all are empty

    Exactly 0 in a group of one and where all totals are equal. No order of the rows and no other group changes a bit.
    A total that is not finite makes its whole group NaN.
    """
    _check_rows(totals=totals, groups=groups)
    _check_rows(totals=totals, groups=lengths, name="lengths")
    centred = group_centred(totals=totals, groups=groups)
    index = _index(groups)
    sizes = index.bincount()[index]
    if estimator == "dr_grpo":
        return centred
    if estimator == "rloo":  # r - (n mean - r) / (n - 1) = n (r - mean) / (n - 1)
        return centred * sizes / (sizes - 1).clamp(min=1)
    if estimator == "grpo":
        variance = _group_sums(values=centred.square(), index=index) / (sizes - 1).clamp(min=1)
        return centred / (variance.sqrt() + GRPO_EPSILON)
    if estimator == "opo":  # the mean taken off first: it cancels in r - baseline
        weights = lengths.double()
        tokens = _group_sums(values=weights, index=index)
        baseline = _group_sums(values=weights * centred, index=index) / torch.where(tokens > 0, tokens, 1.0)
        return centred - baseline
    raise ValueError(f"estimator ({estimator!r}) must be one of 'grpo', 'dr_grpo', 'rloo', 'opo'")


def group_centred(*, totals: Tensor, groups: Tensor) -> Tensor:
    """Return ``totals`` [N] minus the mean of their group in ``groups`` [N], in float64 (REINFORCE++-baseline).

    Exactly 0 where all totals of the group are equal: n r / n need not be r in floating point.
    """
    _check_rows(totals=totals, groups=groups)
    index = _index(groups)
    means = _group_sums(values=totals.double(), index=index) / index.bincount()[index]
    differs = has_signal(totals=totals, groups=groups)
    return torch.where(differs, totals.double() - means, torch.zeros_like(means))


def has_signal(*, totals: Tensor, groups: Tensor) -> Tensor:
    """Return a mask [N] that is True where the group of a row holds different totals (Yu et al. 2025, eq. 11).

    Without a difference every group advantage is 0 and the group teaches nothing. A group with a total that is not
    finite counts as different, so that nothing filters the bad number away.
    """
    _check_rows(totals=totals, groups=groups)
    index = _index(groups)
    highest, lowest = (
        torch.zeros_like(totals).scatter_reduce(0, index, totals, reduce=reduce, include_self=False)[index]
        for reduce in ("amax", "amin")
    )
    return highest - lowest != 0  # NaN - NaN and inf - inf are not 0


def per_token(*, advantages: Tensor, response_mask: Tensor) -> Tensor:
    """Return [B, S]: the row's value of ``advantages`` [B] at each sampled token, 0 outside ``response_mask``."""
    return torch.where(response_mask, advantages[:, None], torch.zeros_like(advantages)[:, None])


def _check_rows(*, totals: Tensor, groups: Tensor, name: str = "groups") -> None:
    if totals.ndim != 1 or groups.shape != totals.shape:
        raise ValueError(f"{name} {tuple(groups.shape)} must have the shape [N] of totals {tuple(totals.shape)}")


def _index(groups: Tensor) -> Tensor:
    """Number the groups 0, 1, ... and return the number of each row's [N]."""
    index: Tensor = torch.unique(groups, return_inverse=True)[1]
    return index


def _group_sums(*, values: Tensor, index: Tensor) -> Tensor:
    """Return for each row the exactly rounded sum of ``values`` [N] over its group: the same in whatever order."""
    parts: dict[int, list[float]] = {}
    ids = index.tolist()
    for group, value in zip(ids, values.tolist(), strict=True):
        parts.setdefault(group, []).append(value)
    sums = {group: math.fsum(part) if all(map(math.isfinite, part)) else math.nan for group, part in parts.items()}
    return values.new_tensor([sums[group] for group in ids])


def _next_sampled(*, values: Tensor, response_mask: Tensor) -> Tensor:
    """Return the value [B, S] at the first sampled token after each token, 0 where there is none."""
    length = values.shape[-1]
    positions = torch.arange(length, device=values.device).expand_as(values)
    sampled_at = torch.where(response_mask, positions, length)
    first_from_here = sampled_at.flip(-1).cummin(-1).values.flip(-1)
    first_after = torch.nn.functional.pad(first_from_here[..., 1:], (0, 1), value=length)
    return torch.nn.functional.pad(values, (0, 1)).gather(-1, first_after)


def _discounted_sums(deltas: Tensor, decays: Tensor) -> Tensor:
    """Solve A_t = delta_t + decay_t A_{t+1} along the last dimension in log2(S) steps.

    After the step with stride k, ``sums`` holds the first 2k terms and ``decays`` the product of as many decays.
    """
    sums, stride = deltas, 1
    while stride < deltas.shape[-1]:
        sums = sums + decays * _shifted(sums, stride)
        decays = decays * _shifted(decays, stride)
        stride *= 2
    return sums


def _shifted(tensor: Tensor, stride: int) -> Tensor:
    return torch.nn.functional.pad(tensor[..., stride:], (0, stride))
