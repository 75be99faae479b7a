"""Which batch kills servers? Data faults are counted apart from a cluster's own.

A server works through its batches in the order in which they were given, so that the one it died with is the oldest
that it has not answered. A batch that several servers die with is poison: no restart would help.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rlhf_ray.errors import RlhfError

SHOWN = 5  # names of rollouts in a message


class PoisonError(RlhfError):
    """Rollouts that no server survives."""


class Suspects:
    """Counts, for every batch under way, the servers that died while they worked on it."""

    def __init__(self, max_deaths: int) -> None:
        self._max_deaths = max_deaths
        self._queues: dict[str, list[str]] = defaultdict(list)
        self._deaths: dict[str, int] = {}

    def given(self, server: str, batch: str) -> None:
        """The server has one more batch to work on, after those that it has."""
        self._queues[server].append(batch)

    def answered(self, server: str, batch: str) -> None:
        """The server, which lives, is done with the batch, whatever it answered; or nobody waits for it any more."""
        if batch in self._queues[server]:
            self._queues[server].remove(batch)
        self._deaths.pop(batch, None)

    def died(self, server: str) -> None:
        """The server is gone: the batch that it worked on is suspected, those that waited behind it are not."""
        queue = self._queues.pop(server, [])
        if queue:
            self._deaths[queue[0]] = self._deaths.get(queue[0], 0) + 1

    def deaths(self, batch: str) -> int:
        """How many servers have died with the batch."""
        return self._deaths.get(batch, 0)

    def is_poison(self, batch: str) -> bool:
        """Whether as many servers as may have died with it."""
        return self.deaths(batch) >= self._max_deaths


def poison(who: str, verb: str, deaths: int, rollouts: Sequence[str], last: Exception) -> PoisonError:
    """Say which rollouts, and what to do."""
    shown = ", ".join(rollouts[:SHOWN]) + (f" and {len(rollouts) - SHOWN} more" if len(rollouts) > SHOWN else "")
    return PoisonError(
        f"{deaths} times in a row a {who} died while it worked at '{verb}' of the same {len(rollouts)} rollouts "
        f"(faults.max_deaths_per_batch): {shown}. The cluster's own faults are counted elsewhere: look at these "
        f"rollouts, at the server's memory, or raise the limit. The last time: {last}"
    )
