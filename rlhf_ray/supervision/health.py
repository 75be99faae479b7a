"""What state each member of a group is in, and which changes there may be.

    starting ──> catching_up ──> serving <──> syncing
                                   │  ^          │
                                   v  └ suspect <┘
                                draining ──> left         any ──> dead

A member serves only weights that it holds whole: from ``catching_up`` and ``syncing`` it comes back to ``serving`` with
the version it has confirmed, or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from rlhf_ray.errors import RlhfError
from rlhf_ray.supervision.clock import Clock

State = Literal["starting", "catching_up", "serving", "syncing", "draining", "suspect", "dead", "left"]
STATES: tuple[State, ...] = get_args(State)
GONE: frozenset[State] = frozenset({"dead", "left"})

_NEXT: dict[State, frozenset[State]] = {
    "starting": frozenset({"catching_up", "serving", "draining", "dead", "left"}),
    "catching_up": frozenset({"serving", "draining", "dead", "left"}),
    "serving": frozenset({"syncing", "draining", "suspect", "dead"}),
    "syncing": frozenset({"serving", "suspect", "dead"}),
    "suspect": frozenset({"serving", "draining", "dead"}),
    "draining": frozenset({"left", "suspect", "dead"}),
    "dead": frozenset(),
    "left": frozenset(),
}


class StateError(RlhfError):
    """A change that the state machine does not know: a mistake in what drives it."""


@dataclass(frozen=True)
class Member:
    """One actor of a group. ``version`` is that of the weights it has confirmed, None where it has none yet."""

    name: str
    state: State
    since: float  # on the clock
    version: int | None = None
    node: str = ""
    reason: str = ""  # why it is suspect or dead, for people


class Health:
    """The members of a group by name. Every event takes constant time; counts by state are kept, not computed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._members: dict[str, Member] = {}
        self._counts: Counter[State] = Counter()

    # --------------------------------------------------------------------------------------------------------- events
    def joins(self, name: str, *, state: State = "starting", version: int | None = None, node: str = "") -> Member:
        """A member that is being started, or one that is there already."""
        if name in self._members:
            raise StateError(f"member {name!r} is there already; names are used once")
        member = Member(name, state, self._clock(), version, node)
        self._members[name] = member
        self._counts[state] += 1
        return member

    def becomes(self, name: str, state: State, *, version: int | None = None, reason: str = "") -> Member:
        """Change a member's state. Raises StateError for a change that must not happen.

        ``version`` is what a member that comes back to ``serving`` has confirmed.
        """
        before = self[name]
        if state not in _NEXT[before.state]:
            raise StateError(f"member {name!r} cannot become {state} from {before.state}")
        if state == "serving" and before.state in ("catching_up", "syncing") and version is None:
            raise StateError(f"member {name!r} must say which version it serves after {before.state}")
        kept = before.version if version is None else version
        after = Member(name, state, self._clock(), kept, before.node, reason)
        self._members[name] = after
        self._counts[before.state] -= 1
        self._counts[state] += 1
        return after

    def dies(self, name: str, reason: str) -> bool:
        """Whether this is news: several calls to a member fail when it dies, and the first one tells."""
        if self[name].state in GONE:
            return False
        self.becomes(name, "dead", reason=reason)
        return True

    def forget(self, name: str) -> None:
        """Drop a member that is gone, once its end has been dealt with."""
        if self[name].state not in GONE:
            raise StateError(f"member {name!r} is {self[name].state}; only one that is gone can be forgotten")
        self._counts[self._members.pop(name).state] -= 1

    # ------------------------------------------------------------------------------------------------------ questions
    def __getitem__(self, name: str) -> Member:
        try:
            return self._members[name]
        except KeyError:
            raise StateError(f"no member {name!r}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def count(self, *states: State) -> int:
        return sum(self._counts[state] for state in states)

    def within(self, *states: State) -> list[Member]:
        """Members in one of these states, in the order in which they joined."""
        return [member for member in self._members.values() if member.state in states]

    def seconds_in_state(self, name: str) -> float:
        return self._clock() - self[name].since
