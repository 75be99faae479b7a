"""Batches of steps to come, collected while the step before them is trained on: who may begin when, and what is kept.

A schedule is two numbers. With ``staleness`` 0 a batch begins when the weights of the step before it are there
(``sync``). With more, it begins so many steps earlier, and its tokens are at most so many versions old when they are
trained on: nothing is thrown away for its age, since nothing begins too early. ``in_flight`` says whether weights may
change under a batch (``async``) or wait for its end (``one_step_off``).

What is in a batch never depends on when anything arrives: prompts are given out in the order of the steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.collecting import Collected, PromptSource

Collect = Callable[[int], Awaitable[Collected]]


@dataclass(frozen=True)
class Schedule:
    """``in_turn``: a batch begins when the one before it is there, since both may go on asking for prompts."""

    staleness: int = 0
    in_flight: bool = False
    in_turn: bool = False


@dataclass(frozen=True)
class Kept:
    """The batches that are there whole, and where prompts go on after them."""

    prompts: Mapping[str, object]
    batches: tuple[Collected, ...]


class Lookahead:
    """Batches by step. ``last`` is the last step of the run: nothing is collected beyond it.

    ``collect`` must ask for its first prompts before it awaits anything.
    """

    def __init__(self, collect: Collect, prompts: PromptSource, schedule: Schedule) -> None:
        self.schedule = schedule
        self._collect = collect
        self._prompts = prompts
        self._tasks: dict[int, asyncio.Task[Collected]] = {}
        self._next = 0  # the first step that has not begun
        self._before: dict[int, Mapping[str, object]] = {}  # where prompts stood when a batch began

    async def take(self, step: int, *, last: int) -> Collected:
        """The batch of ``step``, begun now if it was not before; where no weights change meanwhile, the next begins.

        Raises what collecting it raised.
        """
        self._begin(step, until=step)
        batch = await self._tasks[step]
        del self._tasks[step]
        self._before.pop(step, None)
        if not self.schedule.in_flight:
            self._begin(step, until=min(step + self.schedule.staleness, last))
        return batch

    async def before_sync(self) -> None:
        """Wait for what must not see its weights change."""
        if not self.schedule.in_flight:
            await asyncio.gather(*self._tasks.values())

    def after_sync(self, step: int, *, last: int) -> None:
        """The weights that ``step`` will update are there: begin what may be sampled with them.

        Where the step's batch is there already, generation is faster than training: one batch more is enough, and the
        later it begins the fresher it is. Where training will wait, generators get all that the bound allows.
        """
        if self.schedule.in_flight:
            ahead = min(1, self.schedule.staleness) if self._is_there(step) else self.schedule.staleness
            self._begin(step, until=min(step + ahead, last))

    def has_begun(self, step: int) -> bool:
        return step in self._tasks

    def _is_there(self, step: int) -> bool:
        return step in self._tasks and self._tasks[step].done()

    @property
    def must_wait(self) -> bool:
        """Whether :meth:`before_sync` has anything to wait for."""
        return not self.schedule.in_flight and not all(task.done() for task in self._tasks.values())

    async def cancel(self) -> None:
        """Give up whatever is under way. What is there whole stays."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # ---------------------------------------------------------------------------------------------------------- state
    def kept(self) -> Kept:
        """For the run's state: the batches that are there, up to the first one that is not.

        That one and all later ones begin anew, with the same prompts.
        """
        batches: list[Collected] = []
        for step in sorted(self._tasks):
            task = self._tasks[step]
            if not task.done() or task.cancelled() or task.exception() is not None:
                return Kept(self._before.get(step, self._prompts.state()), tuple(batches))
            batches.append(task.result())
        return Kept(self._prompts.state(), tuple(batches))

    def restore(self, batches: Sequence[Collected]) -> None:
        """Take up what :meth:`kept` gave, in place of what is under way; the prompts must have been restored."""
        for task in self._tasks.values():
            task.cancel()
        self._before.clear()
        self._tasks = {batch.step: asyncio.ensure_future(_known(batch)) for batch in batches}
        self._next = max(self._tasks, default=-1) + 1

    # ------------------------------------------------------------------------------------------------------ beginnings
    def _begin(self, first: int, *, until: int) -> None:
        """Begin what has not begun, from ``first`` or where it has come to."""
        for step in range(max(first, self._next), until + 1):
            self._tasks[step] = asyncio.ensure_future(self._collected(step, self._tasks.get(step - 1)))
            self._next = step + 1

    async def _collected(self, step: int, before: asyncio.Task[Collected] | None) -> Collected:
        if self.schedule.in_turn and before is not None:
            await asyncio.wait({before})
        self._before[step] = self._prompts.state()
        return await self._collect(step)


async def _known(batch: Collected) -> Collected:
    return batch
