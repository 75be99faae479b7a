"""Does a short series rise? Mann-Kendall's test and Theil-Sen's slope, by ranks and medians: one outlier counts as one.

Sources: Mann (1945), Nonparametric tests against trend; Kendall (1975), Rank correlation methods; Sen (1968), Estimates
of the regression coefficient based on Kendall's tau.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from statistics import median

MAX_EXACT = 30  # observations; above it, and where values tie, the normal approximation is close


def slope(values: Sequence[float]) -> float:
    """Return the median of the slopes between all pairs of observations, a unit of time apart; 0 for fewer than two."""
    slopes = [(values[j] - values[i]) / (j - i) for i, j in combinations(range(len(values)), 2)]
    return median(slopes) if slopes else 0.0


def rising_chance(values: Sequence[float]) -> float:
    """Return the chance (p-value, one-sided) that values in random order rise as much as these, by Mann-Kendall's S.

    S counts the pairs in which the later value is the larger, minus those in which it is the smaller. Exact where no
    two values are equal; else normal, with the variance corrected for ties and for continuity. 1 for fewer than two.
    """
    count = len(values)
    if count < 2:
        return 1.0
    statistic = sum((b > a) - (b < a) for a, b in combinations(values, 2))
    if len(set(values)) == count <= MAX_EXACT:
        falling = (count * (count - 1) // 2 - statistic) // 2  # pairs out of order
        return sum(_inversions(count)[: falling + 1]) / math.factorial(count)
    ties = Counter(values).values()
    variance = (_spread(count) - sum(_spread(tied) for tied in ties)) / 18
    if variance == 0:
        return 1.0
    return 0.5 * math.erfc((statistic - 1) / math.sqrt(2 * variance))


def falling_chance(values: Sequence[float]) -> float:
    """Return the same for values that fall."""
    return rising_chance([-value for value in values])


def _spread(count: int) -> int:
    return count * (count - 1) * (2 * count + 5)


@cache
def _inversions(count: int) -> tuple[int, ...]:
    """How many orders of ``count`` different values have k pairs out of order, for every k."""
    if count <= 1:
        return (1,)
    before = _inversions(count - 1)
    size = count * (count - 1) // 2 + 1
    return tuple(sum(before[max(0, k - count + 1) : k + 1]) for k in range(size))
