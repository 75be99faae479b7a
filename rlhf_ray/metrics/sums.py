"""Sums that are added up over micro-batches and ranks, so that a mean is the mean of the whole and not of the parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


class MetricSums:
    """Weighted sums and maxima by metric name. Plain floats inside: small to pickle, no device, no framework.

    The mean of token losses over ranks of different sizes is sum(losses) / sum(tokens). Means of means are not that.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._maxima: dict[str, float] = {}

    def add(self, name: str, total: float, weight: float) -> None:
        """Add ``total``, a sum over ``weight`` items (tokens, pairs, responses), to the metric ``name``.

        Raises:
            ValueError: the weight is negative or not finite, or ``name`` is already a maximum.
        """
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"weight of {name!r} ({weight}) must be a finite number of items, 0 or more")
        if name in self._maxima:
            raise ValueError(f"{name!r} is a maximum already; a mean needs another name")
        old_total, old_weight = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (old_total + float(total), old_weight + float(weight))

    def maximum(self, name: str, value: float) -> None:
        """Keep the largest ``value`` seen. One NaN makes the maximum NaN: a broken number must not hide.

        Raises:
            ValueError: ``name`` is already a mean.
        """
        if name in self._sums:
            raise ValueError(f"{name!r} is a mean already; a maximum needs another name")
        old = self._maxima.get(name, -math.inf)
        self._maxima[name] = math.nan if math.isnan(value) or math.isnan(old) else max(old, float(value))

    def merge(self, other: MetricSums) -> None:
        """Add all of ``other`` to this, as if every one of its calls had been made here."""
        for name, (total, weight) in other._sums.items():
            self.add(name, total, weight)
        for name, value in other._maxima.items():
            self.maximum(name, value)

    def means(self) -> dict[str, float]:
        """Return sum / weight of every mean and the value of every maximum; a mean over no items is left out."""
        means = {name: total / weight for name, (total, weight) in self._sums.items() if weight > 0.0}
        return means | self._maxima

    @property
    def sums(self) -> Mapping[str, tuple[float, float]]:
        """(sum, weight) by name, maxima left out."""
        return dict(self._sums)

    @classmethod
    def merged(cls, parts: Iterable[MetricSums]) -> MetricSums:
        """Return one MetricSums that holds all ``parts``, added in their order."""
        whole = cls()
        for part in parts:
            whole.merge(part)
        return whole
