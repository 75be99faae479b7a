"""Mean and variance of everything seen so far, without keeping it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared deviations; parts merge in any order (Chan et al. 1979, Welford 1962).

    >>> scores = RunningMoments().updated(first_batch).updated(second_batch)
    >>> whitened = (batch - scores.mean) / scores.std
    """

    count: int = 0
    mean: float = 0.0
    squared_deviations: float = 0.0

    @property
    def variance(self) -> float:
        """Unbiased; 0 for fewer than two values."""
        return self.squared_deviations / (self.count - 1) if self.count > 1 else 0.0

    @property
    def std(self) -> float:
        return math.sqrt(self.variance)

    def updated(self, values: Tensor) -> RunningMoments:
        """Return the moments after seeing ``values`` [...] too."""
        if not values.numel():
            return self
        values = values.detach().double()
        mean = values.mean()
        return self.merged(RunningMoments(values.numel(), mean.item(), (values - mean).square().sum().item()))

    def merged(self, other: RunningMoments) -> RunningMoments:
        """Return the moments of both parts together."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        return RunningMoments(
            count=count,
            mean=self.mean + shift * other.count / count,
            squared_deviations=self.squared_deviations
            + other.squared_deviations
            + shift**2 * self.count * other.count / count,
        )

    def state(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> RunningMoments:
        return cls(int(state["count"]), state["mean"], state["squared_deviations"])
