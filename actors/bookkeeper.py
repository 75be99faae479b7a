"""Hears the books of every actor, now and then and at its end, and passes them to the run's ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ray.exceptions import RayError

from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.record import How, RunLedger
from rlhf_ray.ledger.spans import Books

EVERY_S = 20.0  # what a lost actor did since is not known
LAST_WORDS_S = 10.0


class Bookkeeper:
    """Without a ledger nobody is asked anything. An actor that is busy answers when it is done with its call."""

    def __init__(self, ledger: RunLedger | None = None, *, every_s: float = EVERY_S) -> None:
        self._ledger = ledger
        self._every_s = every_s
        self._actors: dict[str, Any] = {}
        self._listening: dict[str, asyncio.Task[None]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._heard: set[str] = set()  # at any time
        self._ends: dict[str, How] = {}  # what is known of the end of those that are at their end

    def now(self) -> float | None:
        """The time of an order, for :meth:`begins`."""
        return None if self._ledger is None else self._ledger.now()

    def during(self, account: Account, role: str = "") -> AbstractContextManager[None]:
        return nullcontext() if self._ledger is None else self._ledger.during(account, role)

    # ------------------------------------------------------------------------------------------------------ life cycle
    def begins(self, name: str, role: str, actor: Any, *, gpus: float, at: float | None = None) -> None:
        """An actor was ordered, now or ``at`` an earlier time."""
        if self._ledger is None:
            return
        self._ledger.begins(name, role, gpus=gpus, at=at)
        self._heard.discard(name)
        self._ends.pop(name, None)
        self._actors[name] = actor
        self._listen(name)

    async def settle(self, names: Sequence[str]) -> None:
        """Hear the last words of actors that are at their end, or rest; those that do not answer in time have none."""
        known = [name for name in names if name in self._actors]
        for name in known:
            if name in self._listening:
                self._listening.pop(name).cancel()
            self._ends[name] = "silent"
        last = {name: asyncio.ensure_future(self._last_words(name)) for name in known}
        if last:
            await asyncio.wait(last.values(), timeout=LAST_WORDS_S)
        for task in last.values():
            task.cancel()

    def rests(self, names: Sequence[str]) -> None:
        """After :meth:`settle`."""
        for name in names:
            if self._ledger is not None and name in self._actors:
                self._ledger.rests(name)

    def wakes(self, names: Sequence[str]) -> None:
        for name in names:
            if self._ledger is not None and name in self._actors:
                self._ends.pop(name, None)
                self._ledger.wakes(name)
                self._listen(name)

    def ends(self, name: str, *, lost: bool = False) -> None:
        """The actor is killed. One whose start has failed, or that was gone when it was asked, is lost as well."""
        if self._ledger is None or self._actors.pop(name, None) is None:
            return
        for tasks in (self._listening, self._asking):
            if (task := tasks.pop(name, None)) is not None:
                task.cancel()
        unasked: How = "silent" if name in self._heard else "lost"
        self._ledger.ends(name, "lost" if lost else self._ends.get(name, unasked))

    # --------------------------------------------------------------------------------------------------------- asking
    def _listen(self, name: str) -> None:
        if name not in self._listening:
            self._listening[name] = asyncio.ensure_future(self._heard_now_and_then(name))

    async def _heard_now_and_then(self, name: str) -> None:
        while name in self._actors:
            await asyncio.sleep(self._every_s)
            try:
                await asyncio.shield(self._asked(name))  # what is on its way is not asked for again
            except RayError:  # gone: whoever needs it notices
                return

    async def _last_words(self, name: str) -> None:
        try:
            if name in self._asking:
                await asyncio.shield(self._asking[name])
            await asyncio.shield(self._asked(name))
            self._ends[name] = "closed"
        except RayError:
            self._ends[name] = "lost"

    def _asked(self, name: str) -> asyncio.Task[None]:
        if name not in self._asking or self._asking[name].done():
            self._asking[name] = asyncio.ensure_future(self._ask(name, self._actors[name]))
        return self._asking[name]

    async def _ask(self, name: str, actor: Any) -> None:
        books: Books = await actor.books.remote()
        if self._ledger is not None:
            self._heard.add(name)
            self._ledger.books(name, books)
