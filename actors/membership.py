"""Who belongs to the generators: new ones start, catch up and serve; lost ones are replaced; some leave.

The rules are those of supervision/health.py and supervision/budget.py; here they are carried out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.answers import ActorDiedError, ActorTimeoutError, answer, first_line
from rlhf_ray.engines.generation import GenerationError
from rlhf_ray.errors import BlockLostError, ConfigError, PlacementError, RlhfError
from rlhf_ray.supervision.budget import Exhausted, RestartBudget
from rlhf_ray.supervision.health import Health

LOST = (ActorDiedError, ActorTimeoutError, GenerationError, BlockLostError)
"""What says that a generator cannot be used any more, whatever it was asked for."""

CatchUp = Callable[[str], Awaitable[int | None]]
"""Give a new member the weights that the others serve; their version, or None where the next weight sync will."""


class NobodyLeftError(RlhfError):
    """The last generator is gone and none will come."""


async def nothing() -> None:
    """For a member that ends by itself."""


@dataclass(frozen=True)
class Started:
    """A generator that has loaded a checkpoint. ``ended`` fails as soon as its process or its engine is gone."""

    handle: Any
    name: str = ""
    node: str = ""
    ended: Any = None
    stop: Callable[[], Awaitable[None]] = nothing


class Supplier(Protocol):
    async def start(self, name: str, model_path: str) -> Started:
        """Make room for a generator, wherever the cluster has or will have some, and start it.

        Raises PlacementError where no room has come within its limit.
        """
        ...


class Membership:
    """``target`` is the number that there shall be. ``on_*`` tell the dispatcher of shards what it must know."""

    def __init__(
        self,
        first: Sequence[Started],
        *,
        supplier: Supplier | None,
        budget: RestartBudget | None,
        timeout_s: float,
        on_join: Callable[[str], None],
        on_leave: Callable[[str, str, bool], None],
        on_drain: Callable[[str], None],
        on_none_left: Callable[[RlhfError], None],
        warn: Callable[[str], None],
    ) -> None:
        self.target = len(first)
        self.model_path = ""
        self.num_restarts = 0
        self.catch_up: CatchUp | None = None
        self._supplier, self._budget, self._timeout_s = supplier, budget, timeout_s
        self._on_join, self._on_leave, self._on_drain = on_join, on_leave, on_drain
        self._on_none_left, self._warn = on_none_left, warn
        self._health = Health(time.monotonic)
        self._started: dict[str, Started] = {}
        self._next_number = len(first)
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Future[Any]] = set()
        self._changed = asyncio.Event()
        self._hopeless: RlhfError | None = None
        for number, member in enumerate(first):
            name = member.name or f"generator {number}"
            self._health.joins(name, state="serving", version=0, node=member.node)
            self._welcome(name, member)
            on_join(name)

    # ------------------------------------------------------------------------------------------------------- questions
    def handle(self, name: str) -> Any:
        """Raises ActorDiedError for one that is not there any more."""
        if name not in self._started:
            raise ActorDiedError(name, f"{name} is gone")
        return self._started[name].handle

    def present(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are still there."""
        return [name for name in names if name in self._started]

    def is_catching_up(self, name: str) -> bool:
        return name in self._started and self._health[name].state == "catching_up"

    async def serving(self) -> list[str]:
        """Those that serve; waits until there is one."""
        return await self._some(("serving",))

    async def to_sync(self) -> list[str]:
        """Those that a weight sync must reach: all but who is leaving. Waits until there is one."""
        return await self._some(("serving", "syncing", "catching_up"))

    async def _some(self, states: Iterable[Any]) -> list[str]:
        while not (found := [m.name for m in self._health.within(*states) if m.name in self._started]):
            self.require_any()
            self._changed.clear()
            await self._changed.wait()
        return found

    def require_any(self) -> None:
        """Raise where nobody is left and nobody will come."""
        if self._hopeless is not None:
            raise self._hopeless

    def snapshot(self) -> list[dict[str, Any]]:
        """For people."""
        return [
            {
                "name": member.name,
                "state": member.state,
                "node": member.node,
                "version": member.version,
                "for_s": round(self._health.seconds_in_state(member.name), 1),
            }
            for member in self._health
        ]

    # ----------------------------------------------------------------------------------------------------------- calls
    async def answers(self, calls: Mapping[str, Any], verb: str) -> dict[str, Any]:
        """What each member says; one that is lost is reported, replaced and left out.

        Raises what a member raises that is alive.
        """
        waits = {
            name: asyncio.ensure_future(answer(ref, who=name, verb=verb, timeout_s=self._timeout_s))
            for name, ref in calls.items()
        }
        try:
            if waits:
                await asyncio.wait(waits.values())
        finally:
            for wait in waits.values():
                wait.cancel()
        found = {}
        for name, wait in waits.items():
            error = wait.exception()
            if isinstance(error, LOST):
                self.lost(name, error)
            elif error is not None:
                raise error
            else:
                found[name] = wait.result()
        return found

    # ------------------------------------------------------------------------------------------------- one that is lost
    def lost(self, name: str, error: BaseException) -> None:
        """A member cannot be used any more: its work goes to others, and another one is started."""
        if name not in self._health or not self._health.dies(name, str(error)):
            return
        self._part(name, str(error), died=True)
        self._health.forget(name)
        self._warn(f"{name} is lost: {first_line(error)}; {self._left_over()}")
        self._replace(error)

    def _replace(self, error: BaseException) -> None:
        if self._supplier is None:
            self._despair(NobodyLeftError(f"no generator is left: {error}"))
            return
        if len(self._staying()) >= self.target:
            return
        verdict = self._budget.spend("infrastructure") if self._budget is not None else None
        if isinstance(verdict, Exhausted):
            self._warn(f"no other generator is started: {verdict} (faults.max_restarts, faults.restarts_within_s)")
            self.target = len(self._staying())
            self._despair(NobodyLeftError(f"no generator is left, and {verdict}; the last one was lost: {error}"))
            return
        self.num_restarts += 1
        self._bring(delay_s=verdict.delay_s if verdict is not None else 0.0)

    def _despair(self, error: RlhfError) -> None:
        """End every wait, where nobody is left and nobody is coming."""
        if not self._started and not self._coming:
            self._hopeless = error
            self._changed.set()
            self._on_none_left(error)

    def _left_over(self) -> str:
        if self._started:
            return f"{len(self._started)} left, its unfinished rollouts go to them"
        return "none is left, so that rollouts wait for one to start"

    # ------------------------------------------------------------------------------------------------------- new ones
    def _bring(self, *, delay_s: float) -> None:
        name = f"generator {self._next_number}"
        self._next_number += 1
        self._health.joins(name)
        self._coming[name] = task = asyncio.ensure_future(self._arrive(name, delay_s))
        self._keep(task)

    async def _arrive(self, name: str, delay_s: float) -> None:
        """Start a member, give it the weights that the others serve, and let it serve."""
        try:
            await asyncio.sleep(delay_s)
            member = await self._start(name)
            self._health.becomes(name, "catching_up")
            self._welcome(name, member)
            version = 0 if self.catch_up is None else await self.catch_up(name)
            self._coming.pop(name, None)
            if version is not None and name in self._started:
                self.serves(name, version)
        except Exception as error:  # noqa: BLE001 -- whatever it is: nobody may wait for this member for ever
            self._coming.pop(name, None)
            if name in self._started:
                self.lost(name, error)
            elif name in self._health and self._health.dies(name, str(error)):
                self._health.forget(name)
                self._warn(f"{name} did not start: {first_line(error)}")
                self._replace(error)
        self.adjust()

    async def _start(self, name: str) -> Started:
        if self._supplier is None:
            raise NobodyLeftError("nobody starts generators here")
        while True:
            path = self.model_path
            try:
                member = await self._supplier.start(name, path)
            except PlacementError as error:
                if not self._started:
                    raise
                self._warn(f"{name}: {first_line(error)}; the run goes on with {len(self._started)} meanwhile")
                continue
            if path != self.model_path:
                await answer(member.handle.load.remote(self.model_path), who=name, verb="load", timeout_s=600.0)
            return member

    def serves(self, name: str, version: int) -> None:
        """The member holds exactly these weights, whole and checked."""
        before = self._health[name].state
        self._health.becomes(name, "serving", version=version)
        if before == "catching_up":
            self._on_join(name)
        self._changed.set()

    def syncs(self, name: str) -> None:
        """The member's weights are being changed: it serves again once they are whole."""
        if self._health[name].state == "serving":
            self._health.becomes(name, "syncing")

    def _welcome(self, name: str, member: Started) -> None:
        self._started[name] = member
        self._changed.set()
        if member.ended is not None:
            self._keep(asyncio.ensure_future(self._watch(name, member.ended)))

    async def _watch(self, name: str, ended: Any) -> None:
        """Hear of a death as it happens, whatever the member is doing."""
        try:
            await answer(ended, who=name, verb="watch", timeout_s=float("inf"))
        except RlhfError as error:
            self.lost(name, error)

    # ------------------------------------------------------------------------------------------------- more and fewer
    def resize(self, count: int) -> None:
        """Have ``count`` members from now on. Raises ConfigError below 1, or where nobody starts any."""
        if count < 1 or self._supplier is None:
            raise ConfigError("generators", count, "cannot be had", "ask for 1 or more of a run that starts its own")
        self.target = count
        self.adjust()

    def adjust(self) -> None:
        """Bring the fleet nearer to its target, as far as it can be done now: nobody leaves amid a sync."""
        surplus = len(self._staying()) - self.target
        for _ in range(-surplus):
            self._bring(delay_s=0.0)
        for name in reversed(self._staying()):
            if surplus <= 0:
                break
            surplus -= self._dismiss(name)

    def _dismiss(self, name: str) -> bool:
        state = self._health[name].state
        if state == "syncing" or (state == "catching_up" and name in self._coming):
            return False  # a round of the weight sync is not cut off; afterwards it may leave
        if name in self._coming:
            self._coming.pop(name).cancel()
        if state in ("starting", "catching_up"):
            self._health.becomes(name, "left")
            self._part(name, "it is not needed any more", died=False)
            self._health.forget(name)
        else:
            self._health.becomes(name, "draining")
            self._on_drain(name)
        return True

    def leave(self, name: str) -> None:
        """A draining member has nothing left, or hands back what it has."""
        if name in self._health and self._health[name].state == "draining":
            self._health.becomes(name, "left")
            self._part(name, "it left", died=False)
            self._health.forget(name)

    def send_leavers(self) -> None:
        """Before weights change: who is leaving hands back what it has, since it would sample from older ones."""
        for member in self._health.within("draining"):
            self.leave(member.name)

    def _staying(self) -> list[str]:
        staying = self._health.within("starting", "catching_up", "serving", "syncing", "suspect")
        return [member.name for member in staying]

    def _part(self, name: str, reason: str, *, died: bool) -> None:
        member = self._started.pop(name, None)
        self._on_leave(name, reason, died)
        if member is not None:
            self._keep(asyncio.ensure_future(member.stop()))

    # ------------------------------------------------------------------------------------------------------ background
    def _keep(self, task: asyncio.Future[Any]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Start nobody any more; those that are there end, or rest, with their scope."""
        self.target, self._supplier = 0, None
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._started = {}
