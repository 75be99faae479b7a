"""Which shard of work goes to which member, and what becomes of a shard whose member dies.

A shard waits, runs on one member, and is delivered once. When its member dies or hands it back it waits again, before
all shards that came later; an answer that still arrives from the earlier member is refused. Every event takes
logarithmic time in the number of members and of waiting shards.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count

from rlhf_ray.errors import RlhfError


class RoutingError(RlhfError):
    """An event that does not fit what the router knows: a mistake in what drives it."""


@dataclass(frozen=True)
class Assignment:
    """A shard on its way to a member. ``attempt`` counts from 1."""

    ticket: int
    member: str
    attempt: int


@dataclass(frozen=True)
class Returned:
    """What a member leaves behind: shards that wait again, and those that have now killed too many members."""

    requeued: tuple[int, ...] = ()
    poisoned: tuple[int, ...] = ()


@dataclass
class _Shard:
    size: int
    attempt: int = 0
    deaths: int = 0
    member: str | None = None


@dataclass
class _Place:
    index: int  # in the order of joining: ties go to who came first
    load: int = 0
    draining: bool = False


class Router:
    """``capacity`` is how much a member is given at a time; an idle one takes a shard of any size.

    A shard that was running on ``max_deaths`` members when they died is not given to another.
    """

    def __init__(self, *, capacity: int, max_deaths: int = 3) -> None:
        self._capacity = capacity
        self._max_deaths = max_deaths
        self._tickets = count()
        self._indices = count()
        self._shards: dict[int, _Shard] = {}
        self._waiting: list[int] = []  # a heap of tickets; one that is not waiting any more is skipped
        self._places: dict[str, _Place] = {}
        self._running: dict[str, set[int]] = {}
        self._by_load: list[tuple[int, int, str]] = []  # a heap; an entry whose load is another's is skipped
        self.num_requeued = 0
        self.num_busy = 0  # members that have something to do

    # -------------------------------------------------------------------------------------------------------- members
    def join(self, member: str) -> None:
        """From now on the member is given shards."""
        if member in self._places:
            raise RoutingError(f"member {member!r} has joined already")
        self._places[member] = _Place(next(self._indices))
        self._running[member] = set()
        self._offer(member)

    def drain(self, member: str) -> None:
        """Give the member nothing new; it finishes what it has."""
        self._place(member).draining = True

    def is_drained(self, member: str) -> bool:
        return self._place(member).draining and not self._running[member]

    def leave(self, member: str, *, died: bool) -> Returned:
        """The member is gone, or hands back what it has: its shards wait again."""
        self.num_busy -= bool(self._place(member).load)
        del self._places[member]
        requeued, poisoned = [], []
        for ticket in sorted(self._running.pop(member)):
            shard = self._shards[ticket]
            shard.member = None
            shard.deaths += died
            if shard.deaths >= self._max_deaths:
                del self._shards[ticket]
                poisoned.append(ticket)
                continue
            heapq.heappush(self._waiting, ticket)
            requeued.append(ticket)
        self.num_requeued += len(requeued)
        return Returned(tuple(requeued), tuple(poisoned))

    def load(self, member: str) -> int:
        return self._place(member).load

    def __contains__(self, member: str) -> bool:
        return member in self._places

    @property
    def num_members(self) -> int:
        return len(self._places)

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self._places)

    # --------------------------------------------------------------------------------------------------------- shards
    def submit(self, size: int) -> int:
        """Take in a shard; its ticket."""
        ticket = next(self._tickets)
        self._shards[ticket] = _Shard(size)
        heapq.heappush(self._waiting, ticket)
        return ticket

    def assign(self) -> Assignment | None:
        """Send the first waiting shard to the member with the least to do; None where nothing waits or fits."""
        ticket = self._first_waiting()
        member = self._least_loaded()
        if ticket is None or member is None:
            return None
        shard, place = self._shards[ticket], self._places[member]
        if place.load and place.load + shard.size > self._capacity:
            return None
        heapq.heappop(self._waiting)
        shard.member, shard.attempt = member, shard.attempt + 1
        self.num_busy += not place.load
        place.load += shard.size
        self._running[member].add(ticket)
        self._offer(member)
        return Assignment(ticket, member, shard.attempt)

    def finish(self, assignment: Assignment) -> bool:
        """Whether to deliver the answer: not one of an earlier attempt, nor one that nobody waits for any more."""
        shard = self._shards.get(assignment.ticket)
        if shard is None or (shard.member, shard.attempt) != (assignment.member, assignment.attempt):
            return False
        self._release(assignment.ticket, shard)
        del self._shards[assignment.ticket]
        return True

    def cancel(self, ticket: int) -> None:
        """Nobody wants the shard any more."""
        if (shard := self._shards.pop(ticket, None)) is not None and shard.member is not None:
            self._release(ticket, shard)

    @property
    def num_running(self) -> int:
        return sum(len(tickets) for tickets in self._running.values())

    @property
    def num_waiting(self) -> int:
        return len(self._shards) - self.num_running

    # ----------------------------------------------------------------------------------------------------------- heaps
    def _place(self, member: str) -> _Place:
        try:
            return self._places[member]
        except KeyError:
            raise RoutingError(f"no member {member!r}") from None

    def _release(self, ticket: int, shard: _Shard) -> None:
        member = shard.member
        if member is None:
            raise RoutingError(f"shard {ticket} runs nowhere")
        self._running[member].discard(ticket)
        self._places[member].load -= shard.size
        self.num_busy -= not self._places[member].load
        self._offer(member)

    def _first_waiting(self) -> int | None:
        while self._waiting:
            shard = self._shards.get(self._waiting[0])
            if shard is not None and shard.member is None:
                return self._waiting[0]
            heapq.heappop(self._waiting)
        return None

    def _least_loaded(self) -> str | None:
        while self._by_load:
            load, index, member = self._by_load[0]
            place = self._places.get(member)
            if place is not None and (place.load, place.index) == (load, index) and not place.draining:
                return member
            heapq.heappop(self._by_load)
        return None

    def _offer(self, member: str) -> None:
        place = self._places[member]
        heapq.heappush(self._by_load, (place.load, place.index, member))
        if len(self._by_load) > 4 * len(self._places) + 64:  # entries that were skipped over and never reached the top
            self._by_load = [(p.load, p.index, name) for name, p in self._places.items() if not p.draining]
            heapq.heapify(self._by_load)
