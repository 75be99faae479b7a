"""Actors that a stage has left, kept for the next one that wants the same: what they have imported stays imported.

An engine that stays only loads other weights. What that saves: ``benchmarks/keep_actors.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.crew import Crew
from actors.placement import Bundle

ANSWER_S = 10.0  # for one that has rested to say that it still lives


@dataclass(frozen=True)
class Kind:
    """What two crews must have in common to stand in for each other."""

    actor_class: type
    environment: Mapping[str, str]
    wanted: Sequence[Bundle]

    @property
    def names(self) -> set[str]:
        return {f"{bundle.role} {bundle.index}" for bundle in self.wanted}


def kind_of(crew: Crew) -> Kind:
    return Kind(crew.actor_class, dict(crew.environment), tuple(crew.wanted))


class Pool:
    """The crews that rest. They hold room in the cluster, and are ended as soon as somebody waits for it."""

    def __init__(self) -> None:
        self._resting: list[Crew] = []

    def __len__(self) -> int:
        return len(self._resting)

    async def take(self, kind: Kind) -> Crew | None:
        """A crew of that kind whose actors all live; None where there is none.

        Then whoever rests under one of its names is ended: a name belongs to one actor.
        """
        while crew := next((each for each in self._resting if kind_of(each) == kind), None):
            self._resting.remove(crew)
            if await crew.rest(ANSWER_S):
                crew.wake()
                return crew
            crew.end_all()
        for crew in [each for each in self._resting if kind_of(each).names & kind.names]:
            self._resting.remove(crew)
            crew.end_all()
        return None

    async def give(self, crew: Crew, within_s: float) -> None:
        """Let a crew rest; where it cannot, it is ended."""
        if await crew.rest(within_s):
            self._resting.append(crew)
            return
        await crew.close(within_s)
        crew.end_all()

    def end_all(self) -> bool:
        """End those that rest; whether there were any."""
        there, self._resting = self._resting, []
        for crew in reversed(there):
            crew.end_all()
        return bool(there)

    async def close(self, within_s: float) -> None:
        """End those that rest once they have given back what outlives their processes."""
        await asyncio.gather(*(crew.close(within_s) for crew in self._resting))
        self.end_all()
