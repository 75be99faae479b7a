"""An elastic fleet with engines that are plain objects: what dies is replaced, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from actors.answers import ActorDiedError
from actors.generators import GeneratorGroup
from actors.membership import NobodyLeftError, Started
from rlhf_ray.errors import ConfigError
from rlhf_ray.records import GenerationRequest, RolloutSummary, SamplingSettings
from rlhf_ray.supervision.budget import RestartBudget, RestartLimit
from rlhf_ray.supervision.sizing import Sizer, SizingRule
from rlhf_ray.supervision.suspects import PoisonError
from tests.actors.fakes import FakeHandle
from tests.supervision.clock import ManualClock


def requests(count: int) -> list[GenerationRequest]:
    return [GenerationRequest(f"r{i}", f"p{i}", i, np.zeros(2, dtype=np.int32), seed=100 + i) for i in range(count)]


class Engine:
    """Answers each request with its seed. Dies with the shards whose orders are in ``fatal``, or when it is told to."""

    def __init__(self, name: str, *, fatal: Sequence[int] = (), holds: asyncio.Event | None = None) -> None:
        self.name, self.fatal, self.holds = name, set(fatal), holds
        self.sampled: list[int] = []
        self.stopped = False
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loaded: list[str] = []

    async def generate(self, given: Sequence[GenerationRequest], settings: SamplingSettings) -> Any:
        work = asyncio.ensure_future(self._work(given))
        await asyncio.wait([work, self.died], return_when=asyncio.FIRST_COMPLETED)
        if self.died.done() or not self.fatal.isdisjoint(r.order for r in given):
            work.cancel()
            self.die()
            raise ActorDiedError(self.name, f"{self.name} died in 'generate'")
        self.sampled += [r.order for r in given]
        rollouts = [(r.rollout_id, r.seed) for r in given]
        return rollouts, tuple(RolloutSummary(r.rollout_id, r.prompt_id, r.order, 2, 1, "stop", 1) for r in given)

    async def _work(self, given: Sequence[GenerationRequest]) -> None:
        await asyncio.sleep(0.001)
        if self.holds is not None:
            await self.holds.wait()

    async def watch(self) -> None:
        await asyncio.shield(self.died)
        raise ActorDiedError(self.name, f"{self.name} died in 'watch'")

    def load(self, model_path: str) -> None:
        self.loaded.append(model_path)

    def die(self) -> None:
        if not self.died.done():
            self.died.set_result(None)


class Supply:
    """Makes engines; ``make`` says what kind."""

    def __init__(self, make: Callable[[str], Engine] = Engine) -> None:
        self.make = make
        self.engines: dict[str, Engine] = {}
        self.started_on: list[str] = []

    async def start(self, name: str, model_path: str) -> Started:
        await asyncio.sleep(0.001)
        self.started_on.append(model_path)
        return self.member(name)

    def member(self, name: str) -> Started:
        engine = self.engines[name] = self.make(name)
        handle = FakeHandle(engine)

        async def stop() -> None:
            engine.stopped = True

        return Started(handle, name=name, node="10.0.0.1", ended=handle.watch.remote(), stop=stop)


class Fleet:
    def __init__(
        self, count: int, *, make: Callable[[str], Engine] = Engine, restarts: int = 8, sizer: Sizer | None = None
    ) -> None:
        self.supply = Supply(make)
        self.said: list[str] = []
        limit = RestartLimit(restarts, window_s=100.0, backoff_s=0.0, max_backoff_s=0.0)
        self.group = GeneratorGroup(
            [self.supply.member(f"generator {i}") for i in range(count)],
            shard_size=2,
            max_running=4,
            timeout_s=5,
            supplier=self.supply,
            budget=RestartBudget(infrastructure=limit, data=limit, clock=ManualClock()),
            sizer=sizer,
            warn=self.said.append,
        )

    async def sampled(self, count: int) -> list[tuple[str, int]]:
        shards = [shard async for shard in self.group.generate(requests(count), SamplingSettings())]
        blocks = [await shard.rollouts for shard in sorted(shards, key=lambda s: s.summaries[0].order)]
        return [rollout for block in blocks for rollout in block]

    @property
    def serving(self) -> list[str]:
        return [m["name"] for m in self.group.members.snapshot() if m["state"] == "serving"]

    async def settled(self, *names: str) -> None:
        async with asyncio.timeout(5):
            while self.serving != list(names):
                await asyncio.sleep(0.002)


async def test_a_death_while_generating_changes_no_rollout_and_loses_none() -> None:
    undisturbed = await Fleet(2).sampled(12)
    fleet = Fleet(2)
    fleet.supply.engines["generator 0"].fatal = {0}
    assert await fleet.sampled(12) == undisturbed
    assert undisturbed == [(f"r{i}", 100 + i) for i in range(12)]
    await fleet.settled("generator 1", "generator 2")
    assert fleet.group.settle()["fleet/restarts"] == 1.0
    assert fleet.group.settle()["fleet/requeued"] >= 1.0
    await fleet.group.close()


async def test_a_death_while_idle_is_noticed_and_the_dead_one_is_ended_and_replaced() -> None:
    fleet = Fleet(2)
    fleet.supply.engines["generator 0"].die()
    await fleet.settled("generator 1", "generator 2")
    assert fleet.supply.engines["generator 0"].stopped
    assert fleet.said == [
        "generator 0 is lost: generator 0 died in 'watch'; 1 left, its unfinished rollouts go to them"
    ]
    await fleet.group.close()


async def test_where_nobody_is_left_rollouts_wait_for_the_replacement() -> None:
    fleet = Fleet(1)
    fleet.supply.engines["generator 0"].die()
    assert len(await fleet.sampled(4)) == 4
    assert fleet.serving == ["generator 1"]
    assert "none is left, so that rollouts wait for one to start" in fleet.said[0]
    await fleet.group.close()


async def test_a_used_up_budget_makes_the_fleet_smaller_and_ends_the_run_with_the_last_one() -> None:
    fleet = Fleet(2, restarts=0)
    fleet.supply.engines["generator 0"].die()
    await fleet.settled("generator 1")
    assert fleet.group.members.target == 1
    fleet.supply.engines["generator 1"].die()
    with pytest.raises(NobodyLeftError, match="0 restarts after infrastructure faults within 100 s are used up"):
        await fleet.sampled(4)
    with pytest.raises(NobodyLeftError):
        await fleet.sampled(4)
    await fleet.group.close()


async def test_a_shard_that_kills_whoever_takes_it_ends_the_run_and_is_named() -> None:
    fleet = Fleet(2, make=lambda name: Engine(name, fatal=[3]))
    with pytest.raises(PoisonError, match="begins with 'r2'"):
        await fleet.sampled(8)
    await fleet.group.close()


async def test_the_fleet_grows_and_a_newcomer_serves_the_model_of_the_others() -> None:
    fleet = Fleet(1)
    await fleet.group.load("another model")
    fleet.group.resize(3)
    await fleet.settled("generator 0", "generator 1", "generator 2")
    assert fleet.supply.started_on == ["another model", "another model"]
    await fleet.sampled(12)
    assert all(engine.sampled for engine in fleet.supply.engines.values())
    await fleet.group.close()


async def test_who_leaves_finishes_what_it_has_and_is_given_nothing_new() -> None:
    gate = asyncio.Event()
    fleet = Fleet(2, make=lambda name: Engine(name, holds=gate))
    sampling = asyncio.ensure_future(fleet.sampled(16))
    await asyncio.sleep(0.02)
    fleet.group.resize(1)
    leaver = fleet.supply.engines["generator 1"]
    assert not leaver.stopped
    gate.set()
    assert len(await sampling) == 16
    assert len(leaver.sampled) == 4
    await asyncio.sleep(0.01)
    assert leaver.stopped
    assert fleet.serving == ["generator 0"]
    await fleet.group.close()


async def test_before_weights_change_a_leaver_hands_back_what_it_has() -> None:
    gate = asyncio.Event()
    fleet = Fleet(2, make=lambda name: Engine(name, holds=gate if name == "generator 1" else None))
    sampling = asyncio.ensure_future(fleet.sampled(8))
    await asyncio.sleep(0.02)
    fleet.group.resize(1)
    fleet.group.members.send_leavers()
    assert [seed for _, seed in await sampling] == [100 + i for i in range(8)]
    assert fleet.supply.engines["generator 1"].sampled == []
    await fleet.group.close()


async def test_a_newcomer_serves_when_it_has_caught_up_and_not_before() -> None:
    fleet, gate = Fleet(1), asyncio.Event()

    async def catch_up(name: str) -> int:
        await gate.wait()
        return 7

    fleet.group.members.catch_up = catch_up
    fleet.group.resize(2)
    await asyncio.sleep(0.02)
    await fleet.sampled(8)
    assert fleet.supply.engines["generator 1"].sampled == []
    gate.set()
    await fleet.settled("generator 0", "generator 1")
    assert fleet.group.members.snapshot()[1]["version"] == 7
    await fleet.group.close()


async def test_a_newcomer_that_is_not_wanted_any_more_never_serves() -> None:
    fleet = Fleet(1)
    fleet.group.resize(4)
    fleet.group.resize(1)
    await asyncio.sleep(0.02)
    assert fleet.serving == ["generator 0"]
    assert [m["name"] for m in fleet.group.members.snapshot()] == ["generator 0"]
    await fleet.group.close()


async def test_a_fleet_that_sizes_itself_grows_while_rollouts_are_awaited_until_a_person_says_a_number() -> None:
    rule = SizingRule(1, 4, grow_above=0.01, patience=1, cooldown_s=0.0)
    fleet = Fleet(1, sizer=Sizer(rule, ManualClock()))
    await fleet.sampled(8)
    fleet.group.settle()
    assert fleet.group.members.target == 2
    fleet.group.resize(1)
    await fleet.sampled(8)
    fleet.group.settle()
    assert fleet.group.members.target == 1
    await fleet.group.close()


async def test_a_fleet_of_nobody_cannot_be_asked_for() -> None:
    fleet = Fleet(1)
    with pytest.raises(ConfigError, match="ask for 1 or more"):
        fleet.group.resize(0)
    await fleet.group.close()
