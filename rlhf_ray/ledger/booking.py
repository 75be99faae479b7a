"""A process books what it does, itself: one account at a time, however many calls are under way in it."""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.spans import Books, Span, merged

P = ParamSpec("P")
R = TypeVar("R")
MERGED_WITHIN_S = 0.001  # between two calls of one account: less than a message takes


class SteadyClock:
    """Seconds since the epoch; never set back or forward while the process lives."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic()


class Booker:
    """What is being done counts by what was begun last, but that a weight sync holds up whatever else there is."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way: dict[int, Account] = {}
        self._numbers = itertools.count()
        self._spans: list[Span] = []
        self._since = self._turned = clock()

    @contextmanager
    def doing(self, account: Account) -> Iterator[None]:
        """Book the block. What is begun inside it, or meanwhile, takes its time away from it."""
        number = next(self._numbers)
        with self._lock:
            self._turn()
            self._under_way[number] = account
        try:
            yield
        finally:
            with self._lock:
                self._turn()
                del self._under_way[number]

    def closed(self) -> Books:
        """What was done since this was last asked, or since the beginning."""
        with self._lock:
            now = self._turn()
            books = Books(self._since, now, tuple(self._spans))
            self._since, self._spans = now, []
        return books

    def _turn(self) -> float:
        """Book the time since the last turn to what was under way."""
        now = self._clock()
        if self._under_way and now > self._turned:
            doing = self._under_way.values()
            account = Account.SYNC if Account.SYNC in doing else next(reversed(doing))
            self._spans[-1:] = merged([*self._spans[-1:], Span(account, self._turned, now)], MERGED_WITHIN_S)
        self._turned = now
        return now


BOOKER = Booker(SteadyClock())
"""The books of this process."""


def booked(account: Account) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Book every call of a function, or of a coroutine function, in this process."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*arguments: P.args, **named: P.kwargs) -> Any:
                with BOOKER.doing(account):
                    return await function(*arguments, **named)

            return cast(Callable[P, R], call_async)

        @functools.wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> R:
            with BOOKER.doing(account):
                return function(*arguments, **named)

        return call

    return decorate
