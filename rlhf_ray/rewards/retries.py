"""How many requests may be sent again in all: a service that is down is not asked four times for every batch."""

from __future__ import annotations

MOST = 16.0  # retries in a row, after a time without failures
EARNED = 0.25  # of a retry, by a request that was answered


class RetryBudget:
    """A store of retries: each takes one out, each answer puts a quarter of one back (Beyer et al. 2016, ch. 22)."""

    def __init__(self, most: float = MOST, earned: float = EARNED) -> None:
        self._most, self._earned, self._left = most, earned, most

    def answered(self) -> None:
        self._left = min(self._most, self._left + self._earned)

    def take(self) -> bool:
        """Take one retry out, where there is one."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
