"""A process books one account at a time, whatever is under way in it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.ledger import booking
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import Booker, booked
from rlhf_ray.ledger.spans import Span
from tests.supervision.clock import ManualClock


def seconds(spans: tuple[Span, ...]) -> dict[Account, float]:
    return {account: sum(s.seconds for s in spans if s.account == account) for account in {s.account for s in spans}}


def test_what_is_begun_inside_takes_its_time_from_what_surrounds_it() -> None:
    clock = ManualClock()
    booker = Booker(clock)
    clock.advance(1)
    with booker.doing(Account.POLICY):
        clock.advance(2)
        with booker.doing(Account.CRITIC):
            clock.advance(4)
        clock.advance(8)
    clock.advance(16)
    books = booker.closed()
    assert books.until - books.since == 31
    assert seconds(books.spans) == {Account.POLICY: 10, Account.CRITIC: 4}


def test_calls_of_one_account_at_the_same_time_count_once() -> None:
    clock = ManualClock()
    booker = Booker(clock)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(booker.doing(Account.GENERATION))
        clock.advance(2)
        second.enter_context(booker.doing(Account.GENERATION))
        clock.advance(3)
        first.close()
        clock.advance(5)
    assert seconds(booker.closed().spans) == {Account.GENERATION: 10}


def test_a_weight_sync_holds_up_whatever_is_asked_for_meanwhile() -> None:
    clock = ManualClock()
    booker = Booker(clock)
    with booker.doing(Account.SYNC):
        clock.advance(1)
        with booker.doing(Account.GENERATION):
            clock.advance(2)
    assert seconds(booker.closed().spans) == {Account.SYNC: 3}


def test_books_that_are_asked_for_in_the_middle_go_on_where_they_ended() -> None:
    clock = ManualClock()
    booker = Booker(clock)
    with booker.doing(Account.FITTING):
        clock.advance(3)
        first = booker.closed()
        clock.advance(4)
    second = booker.closed()
    assert first.until == second.since
    assert [seconds(books.spans) for books in (first, second)] == [{Account.FITTING: 3}, {Account.FITTING: 4}]


DEEDS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(list(Account)), st.integers(1, 9)), max_size=40)


@given(DEEDS)
def test_no_second_is_booked_twice_and_none_that_was_worked_is_missing(deeds: list[tuple[int, Account, int]]) -> None:
    """Up to five calls begin and end in any order."""
    clock, calls = ManualClock(), dict[int, ExitStack]()
    booker, worked = Booker(clock), 0
    for number, account, pause in deeds:
        if number in calls:
            calls.pop(number).close()
        else:
            calls[number] = ExitStack()
            calls[number].enter_context(booker.doing(account))
        clock.advance(pause)
        worked += pause if calls else 0
    books = booker.closed()
    assert sum(span.seconds for span in books.spans) == worked
    assert all(one.ended <= other.begun for one, other in pairwise(books.spans))


async def test_functions_of_both_kinds_are_booked_also_where_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    monkeypatch.setattr(booking, "BOOKER", Booker(clock))

    @booked(Account.SCORING)
    def score(value: int) -> int:
        clock.advance(3)
        return 6 // value

    @booked(Account.GENERATION)
    async def sample(value: int) -> int:
        clock.advance(5)
        return value

    assert score(2) == 3
    with pytest.raises(ZeroDivisionError):
        score(0)
    assert asyncio.iscoroutinefunction(sample)
    assert await sample(4) == 4
    assert seconds(booking.BOOKER.closed().spans) == {Account.SCORING: 6, Account.GENERATION: 5}
