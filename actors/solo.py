"""Starts actors of one kind one by one, each with room of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from actors.crew import Crew
from actors.monitor import Monitor
from actors.placement import Bundle
from actors.room import wait_for_room
from actors.rooms import Rooms


@dataclass
class Solo:
    """``on_start`` and ``on_end`` are told of every crew of one, so that a scope ends them with all others."""

    actor_class: type
    bundle: Bundle
    arguments: Mapping[str, Any]
    environment: Mapping[str, str]
    monitor: Monitor
    max_concurrency: int
    room_s: float  # to wait for room where a run is under way
    on_start: Callable[[Crew], None]
    on_end: Callable[[Crew], None]
    rooms: Rooms = field(default_factory=Rooms)

    async def start(self, index: int, arguments: Mapping[str, Any], *, room_s: float, field: str) -> Crew:
        """Wait for room and begin the actor; an actor that is not wanted any more is ended.

        Raises PlacementError where no room has come within ``room_s`` seconds, those of ``field``.
        """
        bundle = replace(self.bundle, index=index)
        group = self.rooms.reserve(bundle)
        crew = Crew(
            actor_class=self.actor_class,
            arguments={**self.arguments, **arguments},
            environment=self.environment,
            wanted=[bundle],
            group=group,
            max_concurrency=self.max_concurrency,
            wait_for_room_s=self.room_s,
            monitor=self.monitor,
        )
        self.on_start(crew)
        try:
            await wait_for_room(group, [bundle], room_s, field=field)
            crew.start(0)
        except BaseException:
            self.end(crew)
            raise
        return crew

    def end(self, crew: Crew) -> None:
        """Kill the actor and give its room back."""
        crew.end_all()
        self.rooms.forget(crew.group)
        self.on_end(crew)
