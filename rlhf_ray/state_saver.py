"""Saves states while training goes on: the trainer writes aside, a thread does the rest, one state at a time.

What takes the trainer's time is its own writing. Checksums, flushing to disk, the rename that makes the state count and
the copy to the mirror are done beside the next step. Whoever is killed in between has the state before, which goes when
a trainer that loses a rank would no longer go back to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf_ray.checkpoint import Checkpoints, SavedState, Write
from rlhf_ray.errors import StorageError
from rlhf_ray.mirror import Mirror
from rlhf_ray.saving import SaveSchedule


class StateSaver:
    """The states of one run, saved when ``schedule`` says so; a failure is a warning and another try a step later."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        schedule: SaveSchedule,
        *,
        mirror: Mirror | None,
        warn: Callable[[str], None],
        on_saved: Callable[[SavedState], None] = lambda state: None,
    ) -> None:
        self.checkpoints = checkpoints
        self.schedule = schedule
        self._mirror = mirror
        self._warn = warn
        self._on_saved = on_saved  # told of every state that is whole
        self._flight: tuple[int, asyncio.Task[SavedState]] | None = None
        self.longest_s = 0.0  # that a save has taken, both halves
        self._waited_s = 0.0

    async def save_if_due(
        self,
        step: int,
        driver: Mapping[str, object],
        write: Write,
        metrics: Mapping[str, float],
        *,
        stopping: bool = False,
    ) -> bool:
        """Save the state after ``step`` where that is due; whether its first half was done.

        A state that is still on its way is waited for first.
        """
        begun = time.perf_counter()
        await self.settle(wait=stopping)
        best = self.checkpoints.best
        is_best = best is not None and best.is_best(metrics, self.checkpoints.states())
        if not self.schedule.due(step, is_best=is_best, stopping=stopping):
            return False
        try:
            await self.settle()
            aside = await self.checkpoints.write_aside(step, write)
        except (OSError, StorageError) as error:
            self._failed(step, error)
            return False
        finally:
            self._waited_s += time.perf_counter() - begun
        self.schedule.saved(step)
        work = asyncio.to_thread(self._complete, aside, step, driver, dict(metrics), begun)
        self._flight = step, asyncio.create_task(work)
        return True

    def waited(self) -> dict[str, float]:
        """``time/save``, the seconds that training has waited for saves since this was last asked; or nothing."""
        seconds, self._waited_s = self._waited_s, 0.0
        return {"time/save": seconds} if seconds else {}

    async def settle(self, *, wait: bool = True) -> None:
        """Wait for the state that is on its way; or, without ``wait``, only learn what became of one that arrived."""
        if self._flight is None or not (wait or self._flight[1].done()):
            return
        step, task = self._flight
        try:
            self._on_saved(await asyncio.shield(task))
            await asyncio.to_thread(self.checkpoints.rotate)
        except OSError as error:
            self._failed(step, error)
        finally:
            if task.done():
                self._flight = None

    def _complete(
        self, aside: Path, step: int, driver: Mapping[str, object], metrics: Mapping[str, float], begun: float
    ) -> SavedState:
        state = self.checkpoints.complete(aside, step, driver, metrics)
        self.longest_s = max(self.longest_s, time.perf_counter() - begun)
        if self._mirror is not None:
            try:
                self._mirror.upload(state.directory, keep=[kept.name for kept in self.checkpoints.kept()])
            except Exception as error:  # noqa: BLE001 -- whatever a store's client raises: the local state is whole
                self._warn(f"checkpoint {state.directory} could not be copied to {self._mirror.url}: {error!r}")
        return state

    def _failed(self, step: int, error: Exception) -> None:
        times = self.schedule.failed(step)
        newest = next((f"that of step {state.step} stays" for state in self.checkpoints.states()), "there is none yet")
        self._warn(
            f"THE STATE AFTER STEP {step} COULD NOT BE SAVED ({error}), {times} in a row; {newest}, training goes on, "
            f"and the next step tries again: look at the disk of {self.checkpoints.root}"
        )
