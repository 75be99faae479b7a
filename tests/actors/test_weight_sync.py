"""A weight sync: the order of its verbs, and that nothing but the weights that were sent is accepted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from actors.answers import ActorDiedError
from actors.generators import GeneratorGroup
from actors.groups import TrainerGroup
from actors.lasting import LastingFit
from actors.membership import Started
from actors.weight_sync import FleetWeightSync
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.errors import WeightSyncError
from rlhf_ray.supervision.budget import RestartBudget, RestartLimit
from rlhf_ray.supervision.journal import Journal
from tests.actors.fakes import FakeHandle

BUCKETS = 2


class Rank:
    def __init__(self, number: int, events: list[str]) -> None:
        self.name, self.events = f"rank {number}", events
        self.moved = ""  # what has been learned since, for the digest
        self.fails_at = ""
        self.logprobs = [-1.0, -2.0]

    def open_sync(self, backend: str, dtype: str, bucket_bytes: int) -> tuple[int, int]:
        self.events.append(f"{self.name} open {backend} {dtype} {bucket_bytes}")
        return BUCKETS, 80

    def free_address(self) -> str:
        return "10.0.0.1:4000"

    def join_sync(self, group: Any) -> None:
        self.events.append(f"{self.name} join")

    def begin_sync(self) -> None:
        self.events.append(f"{self.name} begin")

    def offer_bucket(self, index: int) -> Mapping[str, int]:
        if self.fails_at == f"offer {index}":
            raise RuntimeError(self.fails_at)
        self.events.append(f"{self.name} offer {index}")
        return {"bucket": index}

    async def transmit_bucket(self, index: int) -> None:
        self.events.append(f"{self.name} transmit {index}")
        await asyncio.sleep(0)

    def release_bucket(self, index: int) -> None:
        self.events.append(f"{self.name} release {index}")

    def sync_digest(self, version: int) -> str:
        return f"digest of {version}{self.moved}"

    def probe(self, token_ids: Sequence[int]) -> list[float]:
        self.events.append(f"{self.name} probe")
        return self.logprobs


class Engine:
    def __init__(self, number: int, events: list[str]) -> None:
        self.name, self.events = f"engine {number}", events
        self.logprobs = [-1.0, -2.0]
        self.received: list[int] = []
        self.loses: int | None = None
        self.dies_in = ""
        self.pause_s = 0.001

    def survive(self, verb: str) -> None:
        if verb == self.dies_in:
            raise ActorDiedError(self.name, f"{self.name} died in {verb!r}")

    def init_weight_sync(self, init_info: Mapping[str, Any]) -> None:
        self.events.append(f"{self.name} init")

    def begin_weight_sync(self, version: int) -> None:
        self.survive("begin")
        self.received = []
        self.events.append(f"{self.name} begin {version}")

    async def receive_weights(self, update_info: Mapping[str, int]) -> None:
        await asyncio.sleep(self.pause_s)
        self.survive(f"receive {update_info['bucket']}")
        if update_info["bucket"] != self.loses:
            self.received.append(update_info["bucket"])
        self.events.append(f"{self.name} receive {update_info['bucket']}")

    def finish_weight_sync(self, version: int, expected_digest: str) -> None:
        self.survive("finish")
        if self.received != list(range(BUCKETS)) or not expected_digest.startswith(f"digest of {version}"):
            raise WeightSyncError(f"{self.name} received other weights than were sent")
        self.events.append(f"{self.name} finish {version}")

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        self.survive("probe")
        self.events.append(f"{self.name} probe")
        return self.logprobs


def lasting(ranks: Sequence[Rank]) -> LastingFit:
    """The ranks as a trainer that nobody restarts."""

    async def refuse(reason: str) -> None:
        raise AssertionError(f"the trainer is started again: {reason}")

    group = TrainerGroup([FakeHandle(rank) for rank in ranks], TrainingConfig(), device="cpu", timeout_s=5)
    limit = RestartLimit(1, window_s=60.0)
    budget = RestartBudget(infrastructure=limit, data=limit, clock=time.monotonic)
    return LastingFit(group, restart=refuse, budget=budget, journal=Journal(1))


class Fleet:
    def __init__(self, *, num_ranks: int = 1, num_engines: int = 1) -> None:
        self.events: list[str] = []
        self.said: list[str] = []
        self.ranks = [Rank(number, self.events) for number in range(num_ranks)]
        self.engines = [Engine(number, self.events) for number in range(num_engines)]
        self.group = GeneratorGroup(
            [FakeHandle(engine) for engine in self.engines],
            shard_size=4,
            max_running=9,
            timeout_s=5,
            supplier=self,
            warn=self.said.append,
        )
        self.sync = FleetWeightSync(
            trainer=lasting(self.ranks),
            generators=self.group,
            probe=[5, 6],
            tolerance=0.01,
            timeout_s=5,
        )

    async def start(self, name: str, model_path: str) -> Started:
        self.engines.append(Engine(len(self.engines), self.events))
        return Started(FakeHandle(self.engines[-1]), name=name)

    @property
    def serving(self) -> dict[str, int]:
        return {m["name"]: m["version"] for m in self.group.members.snapshot() if m["state"] == "serving"}

    async def open(self) -> Fleet:
        await self.sync.open(backend="shared_memory", dtype="float32", bucket_bytes=64, workers_per_engine=1)
        return self


async def test_both_halves_are_opened_before_the_first_sync() -> None:
    fleet = await Fleet(num_engines=2).open()
    assert fleet.events == [
        "rank 0 open shared_memory float32 64",
        "rank 0 join",
        "engine 0 init",
        "engine 1 init",
    ]


async def test_a_sync_pauses_sends_each_bucket_verifies_and_probes_in_this_order() -> None:
    fleet = await Fleet().open()
    fleet.events.clear()
    report = await fleet.sync.sync(3)
    assert [event for event in fleet.events if event.startswith("engine")] == [
        *("engine 0 begin 3", "engine 0 receive 0", "engine 0 receive 1", "engine 0 finish 3", "engine 0 probe")
    ]
    assert [event for event in fleet.events if event.startswith("rank")] == [
        *("rank 0 begin", "rank 0 offer 0", "rank 0 transmit 0", "rank 0 offer 1", "rank 0 release 0"),
        *("rank 0 transmit 1", "rank 0 probe", "rank 0 release 1"),
    ]
    assert (report.version, report.digest, report.num_bytes) == (3, "digest of 3", 80)
    assert set(report.parts) == {"begin", "offer", "transmit", "receive", "finish", "probe"}


async def test_the_trainer_prepares_what_comes_next_while_engines_still_load_a_bucket() -> None:
    fleet = await Fleet().open()
    fleet.engines[0].pause_s = 0.05
    await fleet.sync.sync(1)
    assert fleet.events.index("rank 0 offer 1") < fleet.events.index("engine 0 receive 0")
    assert fleet.events.index("rank 0 probe") < fleet.events.index("engine 0 receive 1")
    assert fleet.events.index("rank 0 transmit 1") > fleet.events.index("rank 0 release 0")


async def test_a_sync_that_fails_leaves_nobody_receiving() -> None:
    fleet = await Fleet(num_engines=2).open()
    fleet.engines[0].pause_s = 0.05
    fleet.ranks[0].fails_at = "offer 1"
    with pytest.raises(RuntimeError, match="offer 1"):
        await fleet.sync.sync(1)
    assert "engine 0 receive 0" in fleet.events


async def test_a_bucket_is_released_only_when_every_engine_has_it() -> None:
    fleet = await Fleet(num_ranks=2, num_engines=3).open()
    await fleet.sync.sync(1)
    for index in range(BUCKETS):
        last_received = max(fleet.events.index(f"engine {engine} receive {index}") for engine in range(3))
        first_released = min(fleet.events.index(f"rank {rank} release {index}") for rank in range(2))
        assert last_received < first_released


async def test_an_engine_that_lost_a_bucket_is_not_used() -> None:
    fleet = await Fleet(num_engines=2).open()
    fleet.engines[1].loses = 0
    with pytest.raises(WeightSyncError, match="engine 1 received other weights than were sent"):
        await fleet.sync.sync(1)
    assert not any(event.startswith("engine") and event.endswith("probe") for event in fleet.events)


@pytest.mark.parametrize("logprobs", [[-1.0, -2.02], [-1.0, float("nan")]])
async def test_an_engine_that_answers_other_numbers_is_named(logprobs: list[float]) -> None:
    fleet = await Fleet(num_engines=2).open()
    fleet.engines[1].logprobs = logprobs
    with pytest.raises(WeightSyncError, match=r"^generator 1 holds version 4 by checksum, yet .* \(tolerance 0\.01\)"):
        await fleet.sync.sync(4)


async def test_a_difference_within_the_tolerance_is_accepted() -> None:
    fleet = await Fleet().open()
    fleet.engines[0].logprobs = [-1.005, -2.0]
    assert (await fleet.sync.sync(1)).version == 1


@pytest.mark.parametrize("verb", ["begin", "receive 0", "receive 1", "finish", "probe"])
async def test_a_sync_goes_on_without_who_dies_in_it_and_the_replacement_gets_the_same_version(verb: str) -> None:
    fleet = await Fleet(num_engines=3).open()
    fleet.engines[1].dies_in = verb
    report = await fleet.sync.sync(4)
    assert (report.version, report.digest) == (4, "digest of 4")
    assert {name for name in fleet.serving if name != "generator 3"} == {"generator 0", "generator 2"}
    await until(lambda: "generator 3" in fleet.serving)
    assert set(fleet.serving.values()) == {4}
    assert fleet.engines[3].received == [0, 1]
    await fleet.group.close()


async def test_where_all_die_in_a_sync_another_round_reaches_who_comes_in_their_place() -> None:
    fleet = await Fleet(num_engines=1).open()
    fleet.engines[0].dies_in = "receive 1"
    assert (await fleet.sync.sync(2)).version == 2
    assert fleet.serving == {"generator 1": 2}
    await fleet.group.close()


async def test_a_newcomer_waits_for_the_next_sync_where_the_trainer_has_learned_since_the_last() -> None:
    fleet = await Fleet(num_engines=1).open()
    await fleet.sync.sync(1)
    fleet.ranks[0].moved = " and more"
    fleet.group.resize(2)
    await until(lambda: "engine 1 probe" in fleet.events)
    assert fleet.serving == {"generator 0": 1}
    await fleet.sync.sync(2)
    assert fleet.serving == {"generator 0": 2, "generator 1": 2}
    await fleet.group.close()


async def test_a_newcomer_before_the_first_sync_serves_what_all_others_serve() -> None:
    fleet = await Fleet(num_engines=1).open()
    fleet.group.resize(2)
    await until(lambda: "generator 1" in fleet.serving)
    assert fleet.serving == {"generator 0": 0, "generator 1": 0}
    assert not any(event.startswith("engine 1 receive") for event in fleet.events)
    await fleet.group.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.002)
