"""Log-probabilities and entropies of tokens from logits, in float32, without a second copy of the logits.

A vocabulary of 150 000 makes [N, V] the largest tensor of a step. Both functions walk over N in chunks, so that only
[chunk, V] is ever held in float32; the backward pass recomputes the softmax instead of keeping it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1024


def token_logprobs(*, logits: Tensor, targets: Tensor, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """Return log softmax(logits / temperature)[targets] [N], in float32.

    ``logits`` [N, V] may be half precision (float64 stays float64); ``targets`` [N] must lie in [0, V), so give padding
    a valid id. The gradient has the type of the logits.
    """
    _check(logits=logits, temperature=temperature, chunk=chunk)
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"targets {tuple(targets.shape)} must be [N] for logits [N, V] {tuple(logits.shape)}")
    return cast(Tensor, _TokenLogprobs.apply(logits, targets, temperature, chunk))  # type: ignore[no-untyped-call]


def entropy(*, logits: Tensor, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """Return the entropy in nats [N] of softmax(logits / temperature), ``logits`` [N, V], in float32.

    A token that is forbidden (logit -inf) adds nothing. Differentiable, but the gradient keeps float32 copies of the
    logits: call it under ``torch.no_grad()`` for a metric.
    """
    _check(logits=logits, temperature=temperature, chunk=chunk)
    if not len(logits):  # still attached to the graph: a rank without tokens must run the same backward as the others
        return logits.sum(-1, dtype=_accumulation_type(logits))
    return torch.cat([_entropy(_scaled(part, temperature)) for part in torch.split(logits, chunk)])


def _entropy(scaled: Tensor) -> Tensor:
    logprobs = scaled.log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)


def _check(*, logits: Tensor, temperature: float, chunk: int) -> None:
    if logits.ndim != 2:
        raise ValueError(f"logits {tuple(logits.shape)} must be [N, V]; flatten the batch and the sequence")
    if not temperature > 0:
        raise ValueError(f"temperature ({temperature}) must be above 0; score greedy sampling with temperature 1")
    if chunk < 1:
        raise ValueError(f"chunk ({chunk}) must be at least 1 row")


def _accumulation_type(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.to(_accumulation_type(logits)) / temperature


class _TokenLogprobs(torch.autograd.Function):
    """d logprob / d logits = (onehot(target) - softmax(logits / T)) / T, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, chunk: int) -> Tensor:
        logprobs = logits.new_empty(len(logits), dtype=_accumulation_type(logits))
        log_normalisers = torch.empty_like(logprobs)
        for start in range(0, len(logits), chunk):
            rows = slice(start, start + chunk)
            scaled = _scaled(logits[rows], temperature)
            log_normalisers[rows] = scaled.logsumexp(-1)
            logprobs[rows] = scaled.gather(-1, targets[rows, None]).squeeze(-1) - log_normalisers[rows]
        ctx.save_for_backward(logits, targets, log_normalisers)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, log_normalisers = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for start in range(0, len(logits), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            upstream = gradient[rows, None] / ctx.temperature
            part = _scaled(logits[rows], ctx.temperature).sub_(log_normalisers[rows, None]).exp_().mul_(-upstream)
            grad_logits[rows] = part.scatter_add_(-1, targets[rows, None], upstream)
        return grad_logits, None, None, None
