"""Means, differences and proportions with a 95% interval. Every interval is deterministic: bootstraps are seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Z95 = 1.959963984540054  # standard normal quantile of 0.975
DEFAULT_RESAMPLES = 2000
BLOCK_ELEMENTS = 500_000

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval. ``low`` and ``high`` are NaN where ``count`` is too small for one."""

    value: float
    low: float
    high: float
    count: int

    @property
    def is_above_zero(self) -> bool:
        return self.low > 0.0

    @property
    def is_below_zero(self) -> bool:
        return self.high < 0.0


def mean_interval(
    values: Sequence[float],
    *,
    method: Literal["normal", "bootstrap"] = "bootstrap",
    seed: int = 0,
    num_resamples: int = DEFAULT_RESAMPLES,
) -> Interval:
    """Return the mean of independent ``values``.

    normal: mean ± 1.96 s / sqrt(n), s with n - 1. bootstrap: percentiles 2.5 and 97.5 of the means of resamples.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return Interval(float(array[0]) if array.size else math.nan, math.nan, math.nan, array.size)
    mean = float(array.mean())
    if method == "normal":
        half = Z95 * float(array.std(ddof=1)) / math.sqrt(array.size)
        return Interval(mean, mean - half, mean + half, array.size)
    return _percentiles(mean, _resampled_sums(array, seed, num_resamples) / array.size, array.size)


def difference_interval(
    treated: Sequence[float], baseline: Sequence[float], *, seed: int = 0, num_resamples: int = DEFAULT_RESAMPLES
) -> Interval:
    """Return mean(treated - baseline), where index i is the same prompt in both: the paired bootstrap.

    Raises:
        ValueError: the two have different lengths.
    """
    if len(treated) != len(baseline):
        raise ValueError(f"paired values must match one to one, got {len(treated)} and {len(baseline)}")
    pairs = np.asarray(treated, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    return mean_interval(pairs.tolist(), seed=seed, num_resamples=num_resamples)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0, num_resamples: int = DEFAULT_RESAMPLES
) -> Interval:
    """Return sum(numerators) / sum(denominators), such as nats per token, resampling both together by index.

    Raises:
        ValueError: the two have different lengths, or a denominator is not positive.
    """
    if len(numerators) != len(denominators):
        raise ValueError(f"numerators and denominators must match, got {len(numerators)} and {len(denominators)}")
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not bool((below > 0).all()):
        raise ValueError("every denominator must be positive; leave out items without any weight")
    if above.size < 2:
        return Interval(float(above[0] / below[0]) if above.size else math.nan, math.nan, math.nan, above.size)
    resampled = _resampled_sums(above, seed, num_resamples) / _resampled_sums(below, seed, num_resamples)
    return _percentiles(float(above.sum() / below.sum()), resampled, above.size)


def proportion_interval(successes: float, total: int) -> Interval:
    """Return successes / total with Wilson's score interval, which stays inside [0, 1] and has width at 0 and at 1.

    ``successes`` may hold halves, for ties. Source: Wilson (1927), Probable inference, the law of succession.

    Raises:
        ValueError: ``successes`` lies outside 0 to ``total``.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes ({successes}) must lie between 0 and total ({total})")
    if total == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    share, square = successes / total, Z95**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), total)


def _resampled_sums(values: Doubles, seed: int, num_resamples: int) -> Doubles:
    """Return the sum of each resample [num_resamples]; the same seed and size give the same indices."""
    random = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // values.size)  # bounds the memory of the indices
    sums = [
        values[random.integers(0, values.size, (min(block, num_resamples - start), values.size))].sum(axis=1)
        for start in range(0, num_resamples, block)
    ]
    return np.concatenate(sums)


def _percentiles(value: float, resampled: Doubles, count: int) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(value, float(low), float(high), count)
