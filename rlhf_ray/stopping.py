"""A run that is told to stop: how long it may still take, as a pure state machine with an injected clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rlhf_ray.errors import RlhfError

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again


class StoppedError(RlhfError):
    """The run was told to stop and has: the message says what is saved and how to go on."""


@dataclass
class Stop:
    """Nobody has asked to stop until :meth:`ask`; then the run has ``grace_s`` seconds."""

    grace_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _asked_at: float | None = field(default=None, init=False)
    _listeners: list[Callable[[], None]] = field(default_factory=list, init=False)

    @property
    def asked(self) -> bool:
        return self._asked_at is not None

    @property
    def remaining_s(self) -> float:
        """Seconds that are left, 0 at least; all of them where nobody has asked."""
        if self._asked_at is None:
            return self.grace_s
        return max(0.0, self.grace_s - (self.clock() - self._asked_at))

    @property
    def heard(self) -> bool:
        """Whether anything listens: a stage that can save what it has done."""
        return bool(self._listeners)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` when the run is asked to stop; the answer takes it away again."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def ask(self) -> None:
        """Ask the run to stop. Asked a second time it has no time left."""
        if self._asked_at is not None:
            self._asked_at = self.clock() - self.grace_s
            return
        self._asked_at = self.clock()
        for listener in tuple(self._listeners):
            listener()
