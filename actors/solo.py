"""Starts actors of one kind one by one, each with room of its own, or takes over those that rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from actors.bookkeeper import Bookkeeper
from actors.crew import Crew
from actors.monitor import Monitor
from actors.placement import Bundle
from actors.pool import Kind, Pool
from actors.room import wait_for_room
from actors.rooms import Rooms


@dataclass
class Solo:
    """``on_start`` and ``on_end`` are told of every crew of one, so that a scope ends them with all others."""

    actor_class: type
    bundle: Bundle
    environment: Mapping[str, str]
    monitor: Monitor
    pool: Pool
    max_concurrency: int
    room_s: float  # to wait for room where a run is under way
    on_start: Callable[[Crew], None]
    on_end: Callable[[Crew], None]
    books: Bookkeeper = field(default_factory=Bookkeeper)
    rooms: Rooms = field(default_factory=Rooms)

    async def start(self, index: int, *, room_s: float, field: str) -> Crew:
        """Take over an actor or wait for room and begin one; an actor that is not wanted any more is ended.

        Raises PlacementError where no room has come within ``room_s`` seconds, those of ``field``.
        """
        bundle = replace(self.bundle, index=index)
        if (crew := await self.pool.take(Kind(self.actor_class, dict(self.environment), (bundle,)))) is not None:
            self.rooms.adopt(crew.group, bundle)
            self.on_start(crew)
            return crew
        ordered, group = self.books.now(), self.rooms.reserve(bundle)
        crew = Crew(
            actor_class=self.actor_class,
            environment=self.environment,
            wanted=(bundle,),
            group=group,
            max_concurrency=self.max_concurrency,
            wait_for_room_s=self.room_s,
            monitor=self.monitor,
            books=self.books,
        )
        self.on_start(crew)
        try:
            await wait_for_room(group, [bundle], room_s, field=field, make_room=self.pool.end_all)
            crew.start(0, ordered=ordered)
        except BaseException:
            self.end(crew)
            raise
        return crew

    def end(self, crew: Crew) -> None:
        """Kill the actor and give its room back."""
        crew.end_all()
        self.rooms.forget(crew.group)
        self.on_end(crew)
