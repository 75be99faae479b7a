"""The generators as one: shards are dispatched, and a member that is lost costs time and nothing else.

Requests carry their seeds, so that a shard gives the same rollouts whoever samples it. Who gets what is decided in
supervision/routing.py, who is there in actors/membership.py.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.answers import answer
from actors.membership import LOST, Membership, Started, Supplier
from rlhf_ray.errors import RlhfError
from rlhf_ray.records import GenerationRequest, IntArray, SamplingSettings
from rlhf_ray.roles import RolloutShard
from rlhf_ray.supervision.budget import RestartBudget
from rlhf_ray.supervision.occupancy import Occupancy
from rlhf_ray.supervision.routing import Assignment, Router
from rlhf_ray.supervision.sizing import Sizer
from rlhf_ray.supervision.suspects import PoisonError


@dataclass(frozen=True)
class _Work:
    """A shard that somebody waits for."""

    requests: Sequence[GenerationRequest]
    settings: SamplingSettings
    inbox: asyncio.Queue[RolloutShard | RlhfError]


class GeneratorGroup:
    """Shards are cut by order, and each goes to the generator with the least to do.

    ``engines`` are there from the beginning. Without a ``supplier`` none is ever replaced or added.
    """

    def __init__(
        self,
        engines: Sequence[Any],
        *,
        shard_size: int,
        max_running: int,
        timeout_s: float,
        supplier: Supplier | None = None,
        budget: RestartBudget | None = None,
        sizer: Sizer | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self._shard_size = shard_size
        self._timeout_s = timeout_s
        self._sizer = sizer
        self._router = Router(capacity=max_running)
        self._occupancy = Occupancy(time.monotonic)
        self._work: dict[int, _Work] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.members = Membership(
            [each if isinstance(each, Started) else Started(each) for each in engines],
            supplier=supplier,
            budget=budget,
            timeout_s=timeout_s,
            on_join=self._joined,
            on_leave=self._left,
            on_drain=self._drained_soon,
            on_none_left=self._nobody_left,
            warn=warn,
        )

    # ------------------------------------------------------------------------------------------------------- sampling
    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        """Yield each shard when its last rollout is there, each exactly once.

        Raises PoisonError for a shard that nobody survives, and what a generator raises that is alive.
        """
        ordered = sorted(requests, key=lambda r: r.order)
        shards = [ordered[i : i + self._shard_size] for i in range(0, len(ordered), self._shard_size)]
        inbox: asyncio.Queue[RolloutShard | RlhfError] = asyncio.Queue()
        tickets = [self._submit(_Work(shard, settings, inbox)) for shard in shards]
        self._occupancy.asked(len(shards))
        try:
            self._pump()
            self.members.require_any()
            for _ in shards:
                item = await inbox.get()
                if isinstance(item, RlhfError):
                    raise item
                yield item
        finally:
            self._occupancy.answered()
            for ticket in tickets:
                self._give_up(ticket)
            self._pump()

    def _submit(self, work: _Work) -> int:
        ticket = self._router.submit(len(work.requests))
        self._work[ticket] = work
        return ticket

    def _give_up(self, ticket: int) -> None:
        """Nobody waits for the shard any more; nothing happens where it has been delivered."""
        if ticket not in self._work:
            return
        del self._work[ticket]
        self._router.cancel(ticket)
        self._note_busy()
        if (task := self._tasks.pop(ticket, None)) is not None:
            task.cancel()

    def _pump(self) -> None:
        while (assignment := self._router.assign()) is not None:
            self._tasks[assignment.ticket] = asyncio.ensure_future(self._run(assignment))
        self._note_busy()

    async def _run(self, assignment: Assignment) -> None:
        name, work = assignment.member, self._work[assignment.ticket]
        try:
            given = self.members.handle(name).generate.options(num_returns=2)
            rollouts, summaries = given.remote(list(work.requests), work.settings)
            known = await answer(summaries, who=name, verb="generate", timeout_s=self._timeout_s)
        except LOST as error:
            self.members.lost(name, error)
            return
        except RlhfError as error:
            self._deliver(assignment, error)
        else:
            self._deliver(assignment, RolloutShard(known, rollouts))
        self._leave_if_drained(name)
        self._pump()

    def _deliver(self, assignment: Assignment, item: RolloutShard | RlhfError) -> None:
        if self._router.finish(assignment):
            self._tasks.pop(assignment.ticket, None)
            self._work.pop(assignment.ticket).inbox.put_nowait(item)

    # -------------------------------------------------------------------------------------------------------- members
    def _joined(self, name: str) -> None:
        self._router.join(name)
        self._occupancy.members(self._router.num_members)
        self._pump()

    def _left(self, name: str, reason: str, died: bool) -> None:
        if name not in self._router:
            return
        returned = self._router.leave(name, died=died)
        self._occupancy.members(self._router.num_members)
        for ticket in returned.poisoned:
            work = self._work.pop(ticket)
            self._tasks.pop(ticket, None)
            first = work.requests[0].rollout_id
            work.inbox.put_nowait(
                PoisonError(
                    f"the shard of {len(work.requests)} rollouts that begins with {first!r} was running on too many "
                    f"generators when they died, the last time: {reason}; its prompts, or a generation.shard_size and "
                    "cluster.actor_timeout_s that do not fit each other, are likelier than the machines"
                )
            )
        self._pump()

    def _drained_soon(self, name: str) -> None:
        self._router.drain(name)
        self._leave_if_drained(name)

    def _leave_if_drained(self, name: str) -> None:
        if name in self._router and self._router.is_drained(name):
            self.members.leave(name)

    def _nobody_left(self, error: RlhfError) -> None:
        """End every wait: nobody will come."""
        for ticket in list(self._work):
            self._work[ticket].inbox.put_nowait(error)

    def _note_busy(self) -> None:
        self._occupancy.busy(self._router.num_busy)

    # ------------------------------------------------------------------------------------------------------ the others
    async def next_token_logprobs(self, prompts: Sequence[IntArray], token_ids: Sequence[int]) -> list[list[float]]:
        """Log-probabilities of each of ``token_ids`` as the first token after each prompt, in the prompts' order.

        The part of a generator that is lost meanwhile is asked of the others.
        """
        found: dict[int, list[float]] = {}
        while missing := [index for index in range(len(prompts)) if index not in found]:
            names = await self.members.serving()
            parts = [missing[i :: len(names)] for i in range(len(names))]
            calls = {
                name: self.members.handle(name).next_token_logprobs.remote([prompts[i] for i in part], token_ids)
                for name, part in zip(names, parts, strict=True)
                if part
            }
            answered = await self.members.answers(calls, "next_token_logprobs")
            for name, part in zip(names, parts, strict=True):
                found |= dict(zip(part, answered.get(name, ()), strict=False))
        return [found[index] for index in range(len(prompts))]

    async def load(self, model_path: str) -> None:
        """Let every generator serve another checkpoint of the same architecture, those that come later too."""
        self.members.model_path = model_path
        names = await self.members.serving()
        await self.members.answers({n: self.members.handle(n).load.remote(model_path) for n in names}, "load")

    async def sleep(self) -> None:
        """Let every generator give its GPU's memory back; it wakes when it is asked for something."""
        names = await self.members.serving()
        await self.members.answers({n: self.members.handle(n).sleep.remote() for n in names}, "sleep")

    # ------------------------------------------------------------------------------------------------- size and report
    def resize(self, count: int) -> None:
        """Have ``count`` generators from now on: new ones start, those that leave finish what they have.

        A size that a person asks for holds: the fleet does not size itself any more.
        """
        self.members.resize(count)
        self._sizer = None

    def settle(self, waited_s: float | None = None) -> Mapping[str, float]:
        """After each weight sync: what has happened in the fleet since the last one, and its size from now on.

        ``waited_s`` is how long training has waited, where that is not as long as anybody asked for rollouts.
        """
        waiting = self._occupancy.reading()
        if waited_s is not None:
            waiting = replace(waiting, trainer_s=min(waited_s, waiting.elapsed_s))
        if self._sizer is not None:
            self.members.resize(self._sizer.wanted(self.members.target, waiting))
        elapsed = max(waiting.elapsed_s, 1e-9)
        return {
            "fleet/generators": float(self._router.num_members),
            "fleet/restarts": float(self.members.num_restarts),
            "fleet/requeued": float(self._router.num_requeued),
            "fleet/waiting_fraction": waiting.trainer_s / elapsed,
            "fleet/idle_fraction": waiting.idle_s / elapsed,
        }

    def snapshot(self) -> dict[str, Any]:
        """For people: members, queues, restarts."""
        loads = {name: self._router.load(name) for name in self._router.members}
        return {
            "role": "generator",
            "wanted": self.members.target,
            "waiting_shards": self._router.num_waiting,
            "running_shards": self._router.num_running,
            "requeued_shards": self._router.num_requeued,
            "restarts": self.members.num_restarts,
            "members": [{**member, "load": loads.get(member["name"], 0)} for member in self.members.snapshot()],
        }

    async def close(self) -> None:
        """Start no member any more; those that are there end with their scope."""
        await self.members.close()
