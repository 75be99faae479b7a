"""Statistics over the positions where a mask is True, in a form that can be summed over ranks."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(*, values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Return the sum of ``values`` [...] where ``mask`` [...] is True, over ``dim`` or over everything.

    What stands outside the mask is never read: it may be NaN, and it receives no gradient.
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(*, values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Return the mean of ``values`` [...] where ``mask`` [...] is True; 0 where nothing is."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values=values, mask=mask, dim=dim) / count.clamp(min=1)


def masked_var(*, values: Tensor, mask: Tensor) -> Tensor:
    """Return the unbiased variance of ``values`` [...] where ``mask`` [...] is True; 0 for fewer than two of them."""
    mean = masked_mean(values=values, mask=mask)
    centred = torch.where(mask, values, mean) - mean
    return masked_sum(values=centred.square(), mask=mask) / (mask.sum() - 1).clamp(min=1)


def moments(*, values: Tensor, mask: Tensor) -> Tensor:
    """Return (count, sum, sum of squares) [3] of ``values`` [...] under ``mask`` [...], in float64.

    Moments of disjoint parts add up: sum them over micro-batches and all-reduce them over ranks, then call
    ``mean_and_variance``. float64 leaves the difference of squares enough digits.
    """
    kept = torch.where(mask, values, torch.zeros_like(values)).double()
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the unbiased variance (both scalars, float64) that belong to ``moments`` [3].

    Unbiased (divided by count - 1), as ``torch.var`` in the whitening of TRL and of the InstructGPT reproductions.
    Fewer than two values have variance 0, none have mean 0.
    """
    count, total, squares = sums.double().unbind()
    mean = total / count.clamp(min=1)
    variance = (squares - total * mean) / (count - 1).clamp(min=1)
    return mean, variance.clamp(min=0)


def whiten(
    *,
    values: Tensor,
    mask: Tensor,
    mean: Tensor,
    variance: Tensor,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
) -> Tensor:
    """Return ``values`` [...] scaled to unit variance under ``mask`` [...], and 0 outside it.

    ``mean`` and ``variance`` are scalars over the whole batch (of all ranks). With ``shift_mean=False`` the mean is put
    back after the division, as lm-human-preferences does for rewards.
    """
    mean, variance = mean.to(values.dtype), variance.to(values.dtype)
    scaled = (values - mean) * torch.rsqrt(variance + epsilon)
    if not shift_mean:
        scaled = scaled + mean
    return torch.where(mask, scaled, torch.zeros_like(scaled))
