"""How long each verb may take, and which calls have taken longer."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

from rlhf_ray.config.checks import require_positive
from rlhf_ray.supervision.clock import Clock


@dataclass(frozen=True)
class Deadlines:
    """Seconds by verb; ``default_s`` for a verb that has no limit of its own."""

    default_s: float
    by_verb: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive(cluster__actor_timeout_s=self.default_s)
        for verb, seconds in self.by_verb.items():
            require_positive(**{f"cluster__deadlines_s__{verb}": seconds})

    def of(self, verb: str) -> float:
        return self.by_verb.get(verb, self.default_s)


@dataclass(frozen=True)
class Call:
    """Something that a member was asked to do."""

    number: int
    member: str
    verb: str
    begun: float  # on the clock
    due: float

    def overdue_s(self, now: float) -> float:
        return now - self.due


class OpenCalls:
    """The calls that have not been answered. Each event takes logarithmic time in their number."""

    def __init__(self, deadlines: Deadlines, clock: Clock) -> None:
        self._deadlines = deadlines
        self._clock = clock
        self._numbers = count()
        self._open: dict[int, Call] = {}
        self._by_due: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, member: str, verb: str) -> Call:
        now = self._clock()
        call = Call(next(self._numbers), member, verb, now, now + self._deadlines.of(verb))
        self._open[call.number] = call
        heapq.heappush(self._by_due, (call.due, call.number))
        return call

    def end(self, call: Call) -> float:
        """Close a call that was answered or given up; the seconds it took. Closing it twice does nothing more."""
        self._open.pop(call.number, None)
        return self._clock() - call.begun

    def overdue(self) -> list[Call]:
        """Close and return the calls past their deadline, the oldest first: each is reported once."""
        now, late = self._clock(), []
        while self._by_due and self._by_due[0][0] <= now:
            _, number = heapq.heappop(self._by_due)
            if (call := self._open.pop(number, None)) is not None:
                late.append(call)
        return late

    def next_due(self) -> float | None:
        """When the next open call will be overdue, on the clock; None where nothing is open."""
        while self._by_due and self._by_due[0][1] not in self._open:
            heapq.heappop(self._by_due)
        return self._by_due[0][0] if self._by_due else None
