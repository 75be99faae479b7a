"""Equal actors, each with room of its own in the cluster. One that is gone can be started again in its place.

The one place where ``ray.remote`` is applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.bookkeeper import Bookkeeper
from actors.messages import say
from actors.monitor import Monitor
from actors.placement import Bundle
from actors.pulse import VARIABLE
from actors.room import wait_for_room


@dataclass
class Crew:
    """What one kind of actor is made of. ``members`` are those that are there, by their place.

    An actor is made from nothing: what it works with is given to it by those who know it.
    """

    actor_class: type
    environment: Mapping[str, str]
    wanted: Sequence[Bundle]
    group: PlacementGroup
    max_concurrency: int
    wait_for_room_s: float
    monitor: Monitor
    books: Bookkeeper = field(default_factory=Bookkeeper)
    members: dict[int, Any] = field(default_factory=dict)

    def start(self, place: int, *, ordered: float | None = None) -> Any:
        """Begin an actor; it is there when its first call is answered. ``ordered`` is when it was asked for."""
        bundle = self.wanted[place]
        name = self.name(place)
        actor = (
            ray.remote(self.actor_class)
            .options(
                num_cpus=bundle.cpus,
                num_gpus=bundle.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=place),
                runtime_env={"env_vars": {**self.environment, VARIABLE: self.monitor.variable(name)}},
                max_concurrency=self.max_concurrency,
            )
            .remote()
        )
        self.members[place] = actor
        self.monitor.watch(name, actor)
        if hasattr(self.actor_class, "books"):
            self.books.begins(name, bundle.role, actor, gpus=bundle.gpus, at=ordered)
        return actor

    @property
    def actors(self) -> list[Any]:
        """Those that are there, in the order of their places."""
        return [self.members[place] for place in sorted(self.members)]

    async def replace(self, place: int, reason: str) -> Any:
        """End what is left of an actor and begin another in its place, where its room is, or comes to be.

        Raises PlacementError where a lost node leaves no room for ``cluster.wait_for_room_s``.
        """
        ordered = self.books.now()
        self.end(place, lost=True)
        say(f"{self.name(place)} is started again: {reason}")
        await wait_for_room(self.group, self.wanted, self.wait_for_room_s)
        return self.start(place, ordered=ordered)

    async def replace_all(self, reason: str) -> list[Any]:
        """End every actor and begin others; as :meth:`replace`."""
        ordered = self.books.now()
        for place in list(self.members):
            self.end(place, lost=True)
        say(f"all of {self.wanted[0].role} are started again: {reason}")
        await wait_for_room(self.group, self.wanted, self.wait_for_room_s)
        return [self.start(place, ordered=ordered) for place in range(len(self.wanted))]

    def end(self, place: int, *, lost: bool = False) -> None:
        """Kill the actor, stopped or not."""
        self.monitor.forget(self.name(place))
        self.books.ends(self.name(place), lost=lost)
        if (actor := self.members.pop(place, None)) is not None:
            ray.kill(actor)

    def end_all(self) -> None:
        for place in sorted(self.members, reverse=True):
            self.end(place)
        remove_placement_group(self.group)

    async def close(self, within_s: float) -> None:
        """Let every actor give back what outlives its process, as far as it still answers."""
        closing = [actor.close.remote() for actor in self.members.values() if hasattr(actor, "close")]
        if closing:
            await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=within_s)
        await self.books.settle(self._names)

    async def rest(self, within_s: float) -> bool:
        """Let every actor drop what a stage gave it; whether all of them are there, and have, and nobody minds them."""
        if len(self.members) < len(self.wanted) or not hasattr(self.actor_class, "rest"):
            return False
        resting = [actor.rest.remote() for actor in self.members.values()]
        done, _ = await asyncio.to_thread(ray.wait, resting, num_returns=len(resting), timeout=within_s)
        try:
            rested = len(done) == len(resting) and all(ray.get(done))
        except ray.exceptions.RayError:
            return False
        for place in self.members:
            self.monitor.forget(self.name(place))
        await self.books.settle(self._names)
        if rested:
            self.books.rests(self._names)
        return rested

    def wake(self) -> None:
        """Mind the actors again, after they have rested."""
        for place, actor in self.members.items():
            self.monitor.watch(self.name(place), actor)
        self.books.wakes(self._names)

    @property
    def _names(self) -> list[str]:
        return [self.name(place) for place in self.members]

    def name(self, place: int) -> str:
        return f"{self.wanted[place].role} {self.wanted[place].index}"
