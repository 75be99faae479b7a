"""An asyncio loop whose clock jumps to the next timer: an hour takes as long as the code that runs in it."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

Result = TypeVar("Result")


class StalledError(RuntimeError):
    """Every task waits for something that no timer will bring."""


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Never sleeps: time passes by as much as the loop was ready to wait. Looks at sockets only before it gives up."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None:
            self.now += max(timeout, 0.0)
            return []
        if ready := super().select(0):
            return list(ready)
        raise StalledError("every task waits, and no timer is set")


class SimulatedTimeLoop(asyncio.SelectorEventLoop):
    """Counts simulated seconds from 0. Nothing in it may wait for a thread or a socket."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end in simulated time. What asks ``time.monotonic`` or ``time.perf_counter`` gets it too."""
    with asyncio.Runner(loop_factory=SimulatedTimeLoop) as runner, _clocks_of(runner.get_loop()):
        return runner.run(main)


@contextmanager
def _clocks_of(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    with mock.patch.object(time, "monotonic", loop.time), mock.patch.object(time, "perf_counter", loop.time):
        yield
