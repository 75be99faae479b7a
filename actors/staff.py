"""The servers of one role by their place, each with room of its own: started, replaced, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from actors.answers import answer
from actors.crew import Crew
from actors.room import FIRST_ROOM, LATER_ROOM
from actors.solo import Solo


class Staff:
    """``arguments`` are those of the servers' ``ready``, ``who`` is what errors call one.

    ``first_room_s`` is for the first ones, whose room is known to exist.
    """

    def __init__(
        self, solo: Solo, arguments: Mapping[str, Any], who: str, *, first_room_s: float, timeout_s: float
    ) -> None:
        self.who = who
        self._solo = solo
        self._arguments = arguments
        self._first_room_s = first_room_s
        self._timeout_s = timeout_s
        self._crews: dict[int, Crew] = {}

    async def start_all(self, count: int) -> list[Any]:
        """The first servers, loading side by side. Where one fails, the scope ends the others."""
        starts = (self._start(place, self._first_room_s, FIRST_ROOM) for place in range(count))
        return list(await asyncio.gather(*starts))

    async def add(self, place: int) -> Any:
        """One more server, ready to serve. Raises PlacementError where no room comes within its limit."""
        return await self._start(place, self._solo.room_s, LATER_ROOM)

    async def replace(self, place: int, reason: str) -> Any:
        """End what is left of a server and start another in its place; raises as :meth:`add`."""
        server = await self._crews[place].replace(0, reason)
        await self._ready(place, server)
        return server

    def end(self, place: int) -> None:
        """Kill a server and give its room back, if it is there."""
        if (crew := self._crews.pop(place, None)) is not None:
            self._solo.end(crew)

    async def _start(self, place: int, room_s: float, field: str) -> Any:
        crew = await self._solo.start(place, room_s=room_s, field=field)
        self._crews[place] = crew
        try:
            await self._ready(place, crew.members[0])
        except BaseException:
            self.end(place)
            raise
        return crew.members[0]

    async def _ready(self, place: int, server: Any) -> None:
        await answer(
            server.ready.remote(**self._arguments), who=f"{self.who} {place}", verb="ready", timeout_s=self._timeout_s
        )
