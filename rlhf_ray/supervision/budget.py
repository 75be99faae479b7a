"""How often something may be started again, and how long to wait before.

Two accounts: an infrastructure fault (a process, a node, a network) says nothing about the work and may happen often on
a large cluster; a data fault (the same work kills whoever takes it) will happen again, so that few are enough to stop.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.checks import require, require_not_negative, require_positive
from rlhf_ray.supervision.clock import Clock

Fault = Literal["infrastructure", "data"]


@dataclass(frozen=True)
class RestartLimit:
    """``max_restarts`` within any ``window_s`` seconds. The wait doubles with each restart in the window."""

    max_restarts: int
    window_s: float
    backoff_s: float = 1.0  # before the second restart in the window; the first is at once
    max_backoff_s: float = 60.0

    def __post_init__(self) -> None:
        require_positive(restarts__window_s=self.window_s)
        require_not_negative(
            restarts__max_restarts=self.max_restarts,
            restarts__backoff_s=self.backoff_s,
            restarts__max_backoff_s=self.max_backoff_s,
        )
        require(
            self.backoff_s <= self.max_backoff_s,
            field="restarts.backoff_s",
            value=self.backoff_s,
            rule=f"must not exceed restarts.max_backoff_s ({self.max_backoff_s:g})",
            remedy="lower one or raise the other",
        )


@dataclass(frozen=True)
class Restart:
    """An allowance to start again after ``delay_s``; ``number`` of ``limit`` in the window."""

    delay_s: float
    number: int
    limit: int


@dataclass(frozen=True)
class Exhausted:
    """No further restart: the budget of the window is used up."""

    fault: Fault
    limit: RestartLimit

    def __str__(self) -> str:
        return (
            f"{self.limit.max_restarts} restarts after {self.fault} faults within {self.limit.window_s:g} s are used up"
        )


class RestartBudget:
    """One budget for a group of members, or for one member. Each call takes time that does not grow with the group."""

    def __init__(self, *, infrastructure: RestartLimit, data: RestartLimit, clock: Clock) -> None:
        self._limits: dict[Fault, RestartLimit] = {"infrastructure": infrastructure, "data": data}
        self._times: dict[Fault, deque[float]] = {"infrastructure": deque(), "data": deque()}
        self._totals: dict[Fault, int] = {"infrastructure": 0, "data": 0}
        self._clock = clock

    def spend(self, fault: Fault) -> Restart | Exhausted:
        """Take one restart out of the budget, where one is left."""
        limit, times = self._limits[fault], self._recent(fault)
        if len(times) >= limit.max_restarts:
            return Exhausted(fault, limit)
        times.append(self._clock())
        self._totals[fault] += 1
        return Restart(self._delay(limit, len(times)), len(times), limit.max_restarts)

    def left(self, fault: Fault) -> int:
        """How many restarts the window would still allow now."""
        return max(0, self._limits[fault].max_restarts - len(self._recent(fault)))

    def total(self, fault: Fault) -> int:
        """Restarts since the beginning."""
        return self._totals[fault]

    def _recent(self, fault: Fault) -> deque[float]:
        times, horizon = self._times[fault], self._clock() - self._limits[fault].window_s
        while times and times[0] <= horizon:
            times.popleft()
        return times

    @staticmethod
    def _delay(limit: RestartLimit, number: int) -> float:
        if number <= 1:
            return 0.0
        return min(limit.max_backoff_s, limit.backoff_s * 2.0 ** min(number - 2, 62))
