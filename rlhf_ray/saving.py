"""When a run saves its state, and what happens when it cannot: a pure state machine with an injected clock.

A save that fails stops nothing: the states that are there stay, and the next step tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["", "steps", "minutes", "best", "again", "end", "stop"]


@dataclass
class SaveSchedule:
    """Every so many steps, every so many minutes, at the end, and again after a failure; 0 leaves a rule out."""

    every_steps: int = 0
    every_minutes: float = 0.0
    num_steps: int = 0
    clock: Callable[[], float] = time.monotonic  # seconds
    _saved_step: int = field(default=-1, init=False)
    _saved_at: float = field(default=0.0, init=False)
    _failures: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    @property
    def saves(self) -> bool:
        """Whether the run saves any state at all."""
        return self.every_steps > 0 or self.every_minutes > 0

    def due(self, step: int, *, is_best: bool = False, stopping: bool = False) -> Reason:
        """Why the state after ``step`` is to be saved now; empty where it is not."""
        if not self.saves or step <= self._saved_step:
            return ""
        for reason, holds in (
            ("stop", stopping),
            ("end", step >= self.num_steps > 0),
            ("again", self._failures > 0),
            ("steps", self.every_steps > 0 and step % self.every_steps == 0),
            ("minutes", 0 < self.every_minutes <= (self.clock() - self._saved_at) / 60),
            ("best", is_best),
        ):
            if holds:
                return reason  # type: ignore[return-value]
        return ""

    def saved(self, step: int) -> None:
        """A state of ``step`` is there: it was saved, or the run went on from it."""
        self._saved_step = max(step, self._saved_step)
        self._saved_at = self.clock()
        self._failures = 0

    def failed(self, step: int) -> int:
        """The state of ``step`` is not there after all; how often in a row this has happened."""
        self._saved_step = min(self._saved_step, step - 1)
        self._failures += 1
        return self._failures
