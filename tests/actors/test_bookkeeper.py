"""Who is asked for books and when; what is written of how an actor ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import bookkeeper
from actors.bookkeeper import Bookkeeper
from rlhf_ray.ledger.accounts import DRIVER, Account
from rlhf_ray.ledger.balance import balance
from rlhf_ray.ledger.booking import Booker
from rlhf_ray.ledger.lives import told
from rlhf_ray.ledger.record import RunLedger
from tests.actors.fakes import FakeHandle, died
from tests.supervision.clock import ManualClock


class Clerk:
    """Keeps books by the office's clock; dead or stopped when a test says so."""

    def __init__(self, clock: ManualClock) -> None:
        self.booker = Booker(clock)
        self.dead = False
        self.free = asyncio.Event()
        self.free.set()

    async def books(self) -> Any:
        await self.free.wait()
        if self.dead:
            raise died()
        return self.booker.closed()


class Office:
    def __init__(self, every_s: float = 1000.0) -> None:
        self.clock = ManualClock()
        self.events: list[Any] = []
        self.ledger = RunLedger(self.events.append, self.clock)
        self.books = Bookkeeper(self.ledger, every_s=every_s)

    def hire(self, name: str, at: float | None = None) -> Clerk:
        clerk = Clerk(self.clock)
        self.books.begins(name, name.split()[0], FakeHandle(clerk), gpus=0.0, at=at)
        return clerk

    def hows(self) -> dict[str, str]:
        return {event["worker"]: event["how"] for event in self.events if event["event"] == "ends"}

    def heard(self) -> list[str]:
        return [event["worker"] for event in self.events if event["event"] == "books"]

    def restarts(self) -> dict[str, bool]:
        return {e["worker"]: e["restart"] for e in self.events if e["event"] == "begins" and e["worker"] != DRIVER}


async def test_last_words_are_heard_before_the_end_and_the_run_balances() -> None:
    office = Office()
    clerk = office.hire("trainer 0")
    with clerk.booker.doing(Account.FITTING):
        office.clock.advance(10)
    await office.books.settle(["trainer 0"])
    office.books.ends("trainer 0")
    office.ledger.close()
    assert office.hows() == {"trainer 0": "closed", DRIVER: "closed"}
    found = balance(told(office.events))
    assert found.totals == {Account.FITTING: 10.0, Account.FOR_TRAINER: 10.0}
    assert found.balances


async def test_one_that_is_gone_is_lost_and_the_next_of_its_role_is_a_restart() -> None:
    office = Office()
    clerk = office.hire("generator 0")
    clerk.dead = True
    await office.books.settle(["generator 0"])
    office.books.ends("generator 0")
    office.hire("reference 0")
    office.hire("generator 1")
    office.hire("generator 2")
    assert office.hows() == {"generator 0": "lost"}
    assert office.restarts() == {"generator 0": False, "reference 0": False, "generator 1": True, "generator 2": False}


async def test_one_that_lives_and_does_not_answer_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeper, "LAST_WORDS_S", 0.05)
    office = Office()
    clerk = office.hire("trainer 0")
    clerk.free.clear()
    office.clock.advance(10)
    await office.books.settle(["trainer 0"])
    office.books.ends("trainer 0")
    office.ledger.close()
    assert office.hows()["trainer 0"] == "silent"
    assert not balance(told(office.events)).balances


async def test_what_is_heard_now_and_then_is_not_lost_with_the_actor() -> None:
    office = Office(every_s=0.01)
    clerk = office.hire("generator 0")
    with clerk.booker.doing(Account.GENERATION):
        office.clock.advance(10)
    while not office.heard():
        await asyncio.sleep(0.01)
    clerk.dead = True
    office.clock.advance(5)
    office.books.ends("generator 0", lost=True)
    office.ledger.close()
    assert balance(told(office.events)).by_role["generator"] == {Account.GENERATION: 10.0, Account.RESTART: 5.0}


async def test_a_busy_actor_is_not_asked_again_before_it_has_answered() -> None:
    office = Office(every_s=0.01)
    clerk = office.hire("trainer 0")
    clerk.free.clear()
    await asyncio.sleep(0.1)
    clerk.free.set()
    await office.books.settle(["trainer 0"])
    assert office.heard() == ["trainer 0", "trainer 0"]  # what was asked before, and the last words


async def test_who_rests_and_wakes_goes_on_with_the_same_books() -> None:
    office = Office()
    clerk = office.hire("trainer 0", at=-5.0)
    for _ in range(2):
        with clerk.booker.doing(Account.FITTING):
            office.clock.advance(10)
        await office.books.settle(["trainer 0"])
        office.books.rests(["trainer 0"])
        office.clock.advance(7)
        office.books.wakes(["trainer 0"])
    await office.books.settle(["trainer 0"])
    office.books.ends("trainer 0")
    sums = balance(told(office.events)).by_role["trainer"]
    assert sums == {Account.START_UP: 5.0, Account.FITTING: 20.0, Account.AT_REST: 14.0}


async def test_without_a_ledger_nobody_is_asked() -> None:
    books = Bookkeeper(every_s=0.01)
    books.begins("trainer 0", "trainer", object(), gpus=0.0)
    await asyncio.sleep(0.05)
    await books.settle(["trainer 0"])
    books.ends("trainer 0")
    assert books.now() is None
