"""Shuffled epochs that a resumed run continues at the very next item."""

from __future__ import annotations

import random
from collections.abc import Mapping

from rlhf_ray.errors import ConfigError, DataError


class ResumableSampler:
    """Endless batches of indices into ``num_items`` items, every item once an epoch.

    An epoch need not hold a whole number of batches: a batch may take the last items of one epoch and the first of the
    next, and still holds no item twice. The state is a few integers, because an epoch's order follows from them.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= num_items:
            raise ConfigError(
                "batch_size",
                batch_size,
                f"must lie between 1 and the number of items ({num_items})",
                "lower it or bring more data: a batch holds no item twice",
            )
        self._num_items = num_items
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._position = 0  # items of the current epoch that were handed out
        self._order = self._order_of(0)

    @property
    def epoch(self) -> int:
        """Epochs that were completed."""
        return self._epoch

    def next_batch(self) -> tuple[int, ...]:
        """Return the next ``batch_size`` indices."""
        batch = self._order[self._position : self._position + self._batch_size]
        missing = self._batch_size - len(batch)
        self._position += len(batch)
        if self._position == self._num_items:
            self._epoch, self._position = self._epoch + 1, missing
            self._order = self._order_of(self._epoch)
            batch = batch + self._order[:missing]
        return tuple(batch)

    def state(self) -> dict[str, int]:
        """Return what ``from_state`` needs."""
        return {
            "num_items": self._num_items,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, int], *, num_items: int, batch_size: int) -> ResumableSampler:
        """Continue where ``state`` was taken; raise DataError where the items or the batches are no longer the same."""
        for name, value in {"num_items": num_items, "batch_size": batch_size}.items():
            if value != state[name]:
                raise DataError(
                    f"{name} ({value}) must be the saved sampler's ({state[name]}) to continue its epoch; "
                    "restore the data and the setting, or start a new run"
                )
        sampler = cls(num_items, batch_size, state["seed"])
        sampler._epoch, sampler._position = state["epoch"], state["position"]
        sampler._order = sampler._order_of(sampler._epoch)
        return sampler

    def _order_of(self, epoch: int) -> list[int]:
        """Return the order of ``epoch``: its own shuffle, changed only as far as the batch that it shares requires.

        The change reaches no further than the first ``batch_size`` places. So the end of an epoch of two batches or
        more is known without the epochs before it; the order of a shorter epoch follows from all of them.
        """
        first = max(epoch - 1, 0) if self._num_items >= 2 * self._batch_size else 0
        order = self._shuffled(first)
        for later in range(first + 1, epoch + 1):
            left_over = later * self._num_items % self._batch_size
            order = self._without_repeats(self._shuffled(later), set(order[self._num_items - left_over :]))
        return order

    def _without_repeats(self, order: list[int], taken: set[int]) -> list[int]:
        """Move the items of ``taken`` behind the places that the shared batch takes from ``order``."""
        if not taken:
            return order
        head = [item for item in order[: self._batch_size] if item not in taken][: self._batch_size - len(taken)]
        chosen = set(head)
        return head + [item for item in order if item not in chosen]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(self._num_items))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order
