"""Who has waited for whom: how long somebody wanted rollouts, and how long members had nothing to do."""

from __future__ import annotations

from rlhf_ray.supervision.clock import Clock
from rlhf_ray.supervision.sizing import Waiting


class Occupancy:
    """Sums seconds between two readings. Every event takes constant time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._members = 0
        self._busy = 0
        self._calls = 0
        self._shards = 0
        self._begin()

    def members(self, count: int) -> None:
        """So many members are there from now on."""
        self._pass()
        self._members = count

    def busy(self, count: int) -> None:
        """So many members have something to do from now on."""
        self._pass()
        self._busy = count

    def asked(self, num_shards: int) -> None:
        """Somebody waits for rollouts from now on."""
        self._pass()
        self._calls += 1
        self._shards = max(self._shards, num_shards)

    def answered(self) -> None:
        self._pass()
        self._calls -= 1

    def reading(self) -> Waiting:
        """What happened since the last reading."""
        self._pass()
        found = Waiting(
            trainer_s=self._wanted_s,
            idle_s=self._idle_s / self._member_s * self._elapsed_s if self._member_s else 0.0,
            elapsed_s=self._elapsed_s,
            num_shards=self._shards,
        )
        self._begin()
        return found

    def _begin(self) -> None:
        self._at = self._clock()
        self._elapsed_s = self._wanted_s = self._idle_s = self._member_s = 0.0
        self._shards = 0

    def _pass(self) -> None:
        now = self._clock()
        seconds, self._at = now - self._at, now
        self._elapsed_s += seconds
        self._wanted_s += seconds if self._calls else 0.0
        self._member_s += seconds * self._members
        self._idle_s += seconds * max(0, self._members - self._busy)
