"""Ragged batches for tests: masks with gaps and empty rows, numbers on them, and rubbish outside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

# Fixed examples: a run that fails here fails everywhere.
EXAMPLES = settings(deadline=None, max_examples=50, derandomize=True)

seeds = st.integers(0, 2**31 - 1)
rubbish = st.sampled_from([math.nan, math.inf, -math.inf, 0.0])


@st.composite
def masks(draw: st.DrawFn, max_rows: int = 5, max_length: int = 8) -> Tensor:
    """Any mask [B, S]: rows may be empty, full, of a single token, and have gaps."""
    length = draw(st.integers(1, max_length))
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=max_rows)))


def numbers(mask: Tensor, seed: int, *, names: int = 1, scale: float = 1.0, outside: float = math.nan) -> list[Tensor]:
    """Normal float64 numbers on the mask, as many tensors as ``names`` says, and ``outside`` elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * torch.randn(names, *mask.shape, generator=generator, dtype=torch.float64)
    return [torch.where(mask, tensor, outside) for tensor in drawn]


def rows(tensor: Tensor, mask: Tensor) -> list[list[float]]:
    """The sampled tokens of each row, as lists."""
    return [row[sampled].tolist() for row, sampled in zip(tensor.detach(), mask, strict=True)]


def flat(lists: Iterable[Iterable[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(lists))


def placed(lists: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Turn lists of sampled tokens back into [B, S], 0 outside the mask."""
    result = torch.zeros(mask.shape, dtype=torch.float64)
    for row, sampled, values in zip(result, mask, lists, strict=True):
        row[sampled] = torch.tensor(values, dtype=torch.float64)
    return result


def widened(tensor: Tensor, columns: int) -> Tensor:
    """Padding on the right: False in a mask, NaN elsewhere."""
    value = False if tensor.dtype == torch.bool else math.nan
    return torch.nn.functional.pad(tensor, (0, columns), value=value)
