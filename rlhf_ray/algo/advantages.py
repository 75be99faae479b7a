"""Generalised advantage estimation over the tokens that the policy sampled."""

from __future__ import annotations

import torch
from torch import Tensor


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
