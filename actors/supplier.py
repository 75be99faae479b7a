"""Starts generators one by one, each with room of its own: Ray's autoscaler sees what is asked for and brings nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from actors.answers import answer
from actors.crew import Crew
from actors.membership import Started
from actors.room import FIRST_ROOM, LATER_ROOM
from actors.solo import Solo

CLOSING_S = 20.0  # for a generator that leaves to give back what outlives its process
CONCURRENCY = 1000


class GeneratorSupplier:
    """``arguments`` are those of the generators' ``start``, all but the model.

    ``first_room_s`` is for the first ones, whose room is known to exist.
    """

    def __init__(self, solo: Solo, arguments: Mapping[str, Any], *, first_room_s: float, timeout_s: float) -> None:
        self._solo = solo
        self._arguments = arguments
        self._first = {"room_s": first_room_s, "field": FIRST_ROOM}
        self._later = {"room_s": solo.room_s, "field": LATER_ROOM}
        self._timeout_s = timeout_s

    async def start_all(self, count: int, model_path: str) -> list[Started]:
        """The first generators, loading side by side. Where one fails, the scope ends the others."""
        starts = (self._start(self._name(number), model_path, self._first) for number in range(count))
        return list(await asyncio.gather(*starts))

    async def start(self, name: str, model_path: str) -> Started:
        """Wait for room, start the engine on a checkpoint; an actor that is not wanted any more is ended."""
        return await self._start(name, model_path, self._later)

    def _name(self, number: int) -> str:
        return f"{self._solo.bundle.role} {number}"

    async def _start(self, name: str, model_path: str, room: Mapping[str, Any]) -> Started:
        crew = await self._solo.start(int(name.rpartition(" ")[2]), **room)
        engine = crew.members[0]
        try:
            started = engine.start.remote(**self._arguments, model_path=model_path)
            node = await answer(started, who=name, verb="start", timeout_s=self._timeout_s)
        except BaseException:
            self._solo.end(crew)
            raise
        return Started(engine, name=name, node=node, ended=engine.watch.remote(), stop=lambda: self._stop(crew))

    async def _stop(self, crew: Crew) -> None:
        """A process that is gone already costs no wait."""
        await crew.close(CLOSING_S)
        self._solo.end(crew)
