"""Servers that die: their batches are answered by others, and a batch that kills is told apart from bad luck."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.answers import ActorDiedError
from actors.restarts import RestartsExhaustedError
from rlhf_ray.errors import ConfigError, PlacementError
from rlhf_ray.supervision.suspects import PoisonError
from tests.actors.fakes import FakeHandle, died, replicas_of


class Server:
    """Squares numbers. Dies at its ``dies_at``-th call, or of a number in ``poison``; then every call fails."""

    def __init__(self, dies_at: int = 0, poison: tuple[int, ...] = ()) -> None:
        self.dies_at, self.poison = dies_at, poison
        self.calls, self.dead = 0, False

    async def grade(self, number: int) -> int:
        self.calls += 1
        self.dead = self.dead or self.calls == self.dies_at or number in self.poison
        await asyncio.sleep(0)
        if self.dead:
            raise died()
        return number * number


class Hospital:
    """Starts a server in the place of a dead one, ``starting_dies`` of them in vain."""

    def __init__(self, starting_dies: int = 0, **server: Any) -> None:
        self.server, self.starting_dies = server, starting_dies
        self.reasons: list[tuple[int, str]] = []
        self.came = asyncio.Event()

    async def replace(self, place: int, reason: str) -> FakeHandle:
        self.reasons.append((place, reason))
        await asyncio.sleep(0.001)
        if len(self.reasons) <= self.starting_dies:
            raise ActorDiedError(f"server {place}", "died in 'ready'")
        self.came.set()
        return FakeHandle(Server(**self.server))


async def squares(replicas: Any, *numbers: int) -> list[int]:
    asked = [
        replicas.ask(lambda server, n=n: server.grade.remote(n), verb="score", rollouts=[f"r{n}"]) for n in numbers
    ]
    return list(await asyncio.gather(*asked))


async def test_a_batch_of_a_server_that_dies_is_answered_by_another_and_a_new_one_takes_its_place() -> None:
    hospital = Hospital()
    replicas = replicas_of(Server(dies_at=2), Server(), replace=hospital.replace)
    assert await squares(replicas, 1, 2, 3, 4, 5, 6) == [1, 4, 9, 16, 25, 36]
    assert len(replicas) == 2
    await asyncio.wait_for(hospital.came.wait(), 5)
    assert [place for place, _ in hospital.reasons] == [0]


async def test_where_all_are_gone_batches_wait_for_the_first_that_comes_back() -> None:
    hospital = Hospital(starting_dies=1)
    replicas = replicas_of(Server(dies_at=1), replace=hospital.replace)
    assert await squares(replicas, 3, 4) == [9, 16]
    assert len(hospital.reasons) == 2


async def test_a_batch_that_kills_every_server_ends_the_run_and_is_named() -> None:
    hospital = Hospital(poison=(13,))
    replicas = replicas_of(Server(poison=(13,)), Server(poison=(13,)), replace=hospital.replace)
    with pytest.raises(PoisonError, match=r"2 times in a row a server died .* the same 1 rollouts .*: r13"):
        await squares(replicas, 13)
    assert await squares(replicas, 2) == [4]


async def test_batches_that_waited_behind_one_that_kills_are_not_blamed() -> None:
    hospital = Hospital(poison=(13,))
    replicas = replicas_of(Server(poison=(13,)), replace=hospital.replace)
    poisonous = asyncio.ensure_future(squares(replicas, 13))
    others = asyncio.ensure_future(squares(replicas, 1, 2, 3))
    with pytest.raises(PoisonError):
        await poisonous
    assert await others == [1, 4, 9]


async def test_servers_that_die_again_and_again_without_a_guilty_batch_end_the_run_with_the_budget() -> None:
    hospital = Hospital(starting_dies=99)
    replicas = replicas_of(Server(dies_at=1), replace=hospital.replace, max_restarts=3)
    with pytest.raises(RestartsExhaustedError, match=r"server 0 is not started again: 3 restarts .*faults\.max_rest"):
        await squares(replicas, 1)


async def test_while_others_live_one_that_is_given_up_does_not_end_the_run() -> None:
    hospital = Hospital(starting_dies=99)
    replicas = replicas_of(Server(dies_at=1), Server(), replace=hospital.replace, max_restarts=2)
    assert await squares(replicas, 1, 2, 3) == [1, 4, 9]
    while len(replicas) > 1:
        await asyncio.sleep(0)
    assert await squares(replicas, 5) == [25]


class Agency:
    """Gives servers on demand, and writes down whom it ended."""

    def __init__(self, no_room: int = 0) -> None:
        self.added: list[int] = []
        self.ended: list[int] = []
        self.no_room = no_room
        self.gate = asyncio.Event()
        self.gate.set()

    async def add(self, place: int) -> FakeHandle:
        self.added.append(place)
        await self.gate.wait()
        if len(self.added) <= self.no_room:
            raise PlacementError("no room within 0 s")
        return FakeHandle(Server())

    def replicas(self, *servers: Server, **others: Any) -> Any:
        return replicas_of(*servers, add=self.add, end=self.ended.append, **others)


class Slow(Server):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.asked = asyncio.Event(), asyncio.Event()

    async def grade(self, number: int) -> int:
        self.asked.set()
        await self.go.wait()
        return await super().grade(number)


async def until_serving(replicas: Any, count: int) -> None:
    while [member["state"] for member in replicas.snapshot()["members"]] != ["serving"] * count:
        await asyncio.sleep(0)


async def test_more_servers_start_beside_those_that_serve_and_take_their_turn() -> None:
    agency, first = Agency(), Server()
    replicas = agency.replicas(first)
    replicas.resize(3)
    assert await squares(replicas, 7) == [49]  # nobody waits for the new ones
    await until_serving(replicas, 3)
    assert agency.added == [1, 2]
    assert await squares(replicas, 1, 2, 3, 4, 5, 6) == [1, 4, 9, 16, 25, 36]
    assert first.calls <= 3


async def test_fewer_servers_the_newest_leave_and_answer_what_they_have_first() -> None:
    agency, slow = Agency(), Slow()
    replicas = agency.replicas(Server(), slow)
    asked = asyncio.ensure_future(squares(replicas, 2, 3))
    await slow.asked.wait()
    replicas.resize(1)
    assert agency.ended == []
    assert [member["state"] for member in replicas.snapshot()["members"]] == ["serving", "leaving"]
    assert await squares(replicas, 4, 5) == [16, 25]
    slow.go.set()
    assert await asked == [4, 9]
    assert agency.ended == [1]
    assert [member["name"] for member in replicas.snapshot()["members"]] == ["server 0"]


async def test_one_that_dies_while_it_leaves_is_not_replaced_and_its_batch_is_answered_by_others() -> None:
    agency, slow = Agency(), Slow()
    slow.dies_at = 1
    replicas = agency.replicas(Server(), slow)
    asked = asyncio.ensure_future(squares(replicas, 2, 3))
    await slow.asked.wait()
    replicas.resize(1)
    slow.go.set()
    assert await asked == [4, 9]
    assert agency.ended == [1]
    assert len(replicas) == 1


async def test_those_that_are_still_starting_leave_first() -> None:
    agency = Agency()
    agency.gate.clear()
    replicas = agency.replicas(Server())
    replicas.resize(3)
    await asyncio.sleep(0)
    replicas.resize(1)
    await asyncio.sleep(0)
    assert agency.ended == [2, 1]
    assert [member["name"] for member in replicas.snapshot()["members"]] == ["server 0"]
    assert await squares(replicas, 2) == [4]


async def test_without_room_the_others_serve_on_and_it_is_asked_for_again() -> None:
    agency = Agency(no_room=2)
    replicas = agency.replicas(Server())
    replicas.resize(2)
    assert await squares(replicas, 2) == [4]
    await until_serving(replicas, 2)
    assert agency.added == [1, 1, 1]


@pytest.mark.parametrize(("count", "agency"), [(0, Agency()), (2, None)])
async def test_a_size_that_cannot_be_had_is_refused(count: int, agency: Agency | None) -> None:
    replicas = agency.replicas(Server()) if agency else replicas_of(Server())
    with pytest.raises(ConfigError, match=r"^server \(\d\) cannot be had"):
        replicas.resize(count)


async def test_closing_starts_nobody_any_more() -> None:
    agency = Agency()
    agency.gate.clear()
    replicas = agency.replicas(Server())
    replicas.resize(2)
    await asyncio.sleep(0)
    await replicas.close()
    assert len(replicas) == 1
    with pytest.raises(ConfigError):
        replicas.resize(3)
