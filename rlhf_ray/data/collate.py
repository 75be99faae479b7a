"""Token sequences to right-padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlhf_ray.records import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded sequences. ``mask`` marks the tokens that count: sampled ones, or a demonstration's responses."""

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] bool, False on padding
    mask: Tensor  # [B, S] bool

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device), self.mask.to(device))

    @property
    def padding(self) -> tuple[int, int]:
        """(padded positions, all positions)."""
        total = self.attention_mask.numel()
        return total - int(self.attention_mask.sum()), total


@dataclass(frozen=True)
class TokenSequence:
    """A sequence and which of its tokens count."""

    token_ids: IntArray  # [L]
    mask: BoolArray  # [L]

    def __len__(self) -> int:
        return len(self.token_ids)


def response_sequence(prompt_ids: IntArray, response_ids: IntArray) -> TokenSequence:
    """A prompt and its response, of which the response counts."""
    mask = np.zeros(len(prompt_ids) + len(response_ids), dtype=np.bool_)
    mask[len(prompt_ids) :] = True
    return TokenSequence(np.concatenate([prompt_ids, response_ids]).astype(np.int32), mask)


def sampled_logprobs(reference: FloatArray, response_ids: IntArray) -> FloatArray:
    """Log-probabilities [R] of the response's tokens, from themselves [R] or from whole distributions [R, V]."""
    if reference.ndim == 1:
        return reference
    picked: FloatArray = np.take_along_axis(reference, response_ids[:, None].astype(np.int64), axis=1)[:, 0]
    return picked


def collate(sequences: Sequence[TokenSequence]) -> TokenBatch:
    """Pad to the longest with token 0, which attention never sees.

    No sequences give one row of two padded positions of which none counts: a rank without rows of its own still runs
    forward and backward, and adds nothing.
    """
    width = max([2, *(len(s) for s in sequences)])
    rows = max(1, len(sequences))
    ids = np.zeros((rows, width), dtype=np.int64)
    attention = np.zeros((rows, width), dtype=np.bool_)
    mask = np.zeros((rows, width), dtype=np.bool_)
    if not sequences:
        attention[:] = True  # a row that attends to nothing would be NaN
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence.token_ids
        attention[row, : len(sequence)] = True
        mask[row, : len(sequence)] = sequence.mask
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(mask))


def spread(values: Sequence[FloatArray], batch: TokenBatch) -> Tensor:
    """Put each row's per-response-token values [R_i] where the row's mask is True; zeros elsewhere. [B, S] fp32."""
    out = torch.zeros(batch.mask.shape, dtype=torch.float32)
    if not values:
        return out
    flat = torch.from_numpy(np.concatenate(values).astype(np.float32))
    return out.masked_scatter(batch.mask.cpu(), flat)
