"""Servers that may die: what one was asked is asked again, of another or of the one that takes its place."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from actors.answers import ActorDiedError, ActorTimeoutError, answer
from actors.messages import say
from actors.restarts import restart_allowed
from rlhf_ray.errors import ConfigError, PlacementError, RlhfError
from rlhf_ray.supervision.budget import RestartBudget
from rlhf_ray.supervision.patience import Patience
from rlhf_ray.supervision.suspects import Suspects, poison

Replace = Callable[[int, str], Awaitable[Any]]
Add = Callable[[int], Awaitable[Any]]
End = Callable[[int], None]


class Replicas:
    """Equal servers without state, used in turn. ``replace(place, reason)`` gives one that is ready to serve.

    So does ``add(place)``, where there shall be more; ``end(place)`` ends one that leaves, when it has answered.
    """

    def __init__(
        self,
        who: str,
        servers: Sequence[Any],
        *,
        timeout_s: float,
        replace: Replace,
        budget: RestartBudget,
        max_deaths_per_batch: int,
        add: Add | None = None,
        end: End = lambda place: None,
    ) -> None:
        self.who = who
        self.target = len(servers)
        self._servers: dict[int, Any] = dict(enumerate(servers))
        self._patience = Patience(timeout_s)
        self._replace, self._add, self._end = replace, add, end
        self._budget = budget
        self._suspects = Suspects(max_deaths_per_batch)
        self._coming: dict[int, asyncio.Task[None]] = {}
        self._leaving: dict[int, Any] = {}  # they answer what they have, and are asked nothing more
        self._next_place = len(servers)
        self._in_hand: Counter[int] = Counter()
        self._num_restarts = self._num_asked_again = self._num_waiting = 0
        self._given_up: RlhfError | None = None
        self._turn = 0
        self._batches = itertools.count()

    def __len__(self) -> int:
        return len(self._servers) + len(self._coming)

    async def ask(self, call: Callable[[Any], Any], *, verb: str, rollouts: Sequence[str]) -> Any:
        """The answer to ``call(server)``, of whichever server gives it.

        Servers have no state and no randomness: the answer does not depend on who gives it.
        Raises PoisonError for a batch that servers die with, and what ended the last attempt to start one.
        """
        batch = f"batch {next(self._batches)}"
        while True:
            place, server = await self._next()
            self._suspects.given(f"{place}", batch)
            self._in_hand[place] += 1
            begun, limit = time.monotonic(), self._patience.of(verb)
            try:
                found = await answer(call(server), who=f"{self.who} {place}", verb=verb, timeout_s=limit)
            except (ActorDiedError, ActorTimeoutError) as fault:
                self._lost(place, server, fault)
                self._num_asked_again += 1
                if self._suspects.is_poison(batch):
                    raise poison(self.who, verb, self._suspects.deaths(batch), rollouts, fault) from fault
            except BaseException:
                self._suspects.answered(f"{place}", batch)
                raise
            else:
                self._suspects.answered(f"{place}", batch)
                self._patience.saw(verb, time.monotonic() - begun)
                return found
            finally:
                self._in_hand[place] -= 1
                self._end_if_done(place)

    async def _next(self) -> tuple[int, Any]:
        """A server that is there, the next in turn; waits for one where all are gone."""
        while not self._servers:
            if not self._coming:
                raise self._given_up or RlhfError(f"there is no {self.who}")
            self._num_waiting += 1
            try:
                await asyncio.wait(self._coming.values(), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._num_waiting -= 1
        self._turn += 1
        places = sorted(self._servers)
        place = places[self._turn % len(places)]
        return place, self._servers[place]

    def _lost(self, place: int, server: Any, fault: Exception) -> None:
        """Start another in its place; once, however many batches it takes with it."""
        if self._leaving.get(place) is server:
            self._suspects.died(f"{place}")
            del self._leaving[place]
            self._end(place)
        if self._servers.get(place) is not server:
            return
        del self._servers[place]
        self._suspects.died(f"{place}")
        self._coming[place] = asyncio.create_task(self._restarted(place, str(fault)))

    async def _restarted(self, place: int, reason: str) -> None:
        """Put a server in this place, after as many attempts as the budget allows; else the others go on without it."""
        await self._comes(place, self._replacement(place, reason))

    async def _comes(self, place: int, start: Awaitable[Any]) -> None:
        try:
            self._servers[place] = await start
        except RlhfError as error:
            self._given_up = error
            self._end(place)
            say(f"{self.who} {place} is given up: {error}")
        finally:
            self._coming.pop(place, None)

    async def _replacement(self, place: int, reason: str) -> Any:
        while True:
            await restart_allowed(self._budget, f"{self.who} {place}", reason)
            self._num_restarts += 1
            try:
                return await self._replace(place, reason)
            except (ActorDiedError, ActorTimeoutError) as fault:
                reason = str(fault)

    # ------------------------------------------------------------------------------------------------- more and fewer
    def resize(self, count: int) -> None:
        """Have ``count`` servers from now on: new ones start, those that leave answer what they have.

        Raises ConfigError below 1, or where nobody starts any.
        """
        if count < 1 or self._add is None:
            raise ConfigError(self.who, count, "cannot be had", "ask for 1 or more of a run that starts its own")
        self.target = count
        for _ in range(count - len(self)):
            place, self._next_place = self._next_place, self._next_place + 1
            self._coming[place] = asyncio.create_task(self._comes(place, self._newcomer(self._add, place)))
        leavers = [*sorted(self._coming, reverse=True), *sorted(self._servers, reverse=True)]
        for place in leavers[: len(self) - count]:
            self._dismiss(place)

    async def _newcomer(self, add: Add, place: int) -> Any:
        """A server that was asked for: while others serve, it waits for room as long as it takes."""
        while True:
            try:
                return await add(place)
            except PlacementError as error:
                if not self._servers:
                    raise
                say(f"{self.who} {place}: {error}; the run goes on with {len(self._servers)} meanwhile")
            except (ActorDiedError, ActorTimeoutError) as fault:
                await restart_allowed(self._budget, f"{self.who} {place}", str(fault))

    def _dismiss(self, place: int) -> None:
        if place in self._coming:
            self._coming.pop(place).cancel()
            self._end(place)
        else:
            self._leaving[place] = self._servers.pop(place)
            self._end_if_done(place)

    def _end_if_done(self, place: int) -> None:
        if place in self._leaving and not self._in_hand[place]:
            del self._leaving[place]
            self._end(place)

    async def close(self) -> None:
        """Start no server any more; those that are there end with their scope."""
        self._add, coming = None, list(self._coming.values())
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)

    def snapshot(self) -> dict[str, Any]:
        """For people: servers, and the batches that they have in hand."""
        states = {
            **dict.fromkeys(self._servers, "serving"),
            **dict.fromkeys(self._coming, "starting"),
            **dict.fromkeys(self._leaving, "leaving"),
        }
        return {
            "role": self.who,
            "wanted": self.target,
            "waiting_shards": self._num_waiting,
            "running_shards": self._in_hand.total(),
            "requeued_shards": self._num_asked_again,
            "restarts": self._num_restarts,
            "members": [
                {"name": f"{self.who} {place}", "state": states[place], "load": self._in_hand[place]}
                for place in sorted(states)
            ],
        }
