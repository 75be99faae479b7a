"""Deadlines by verb, and the calls that are past theirs."""

from __future__ import annotations

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.supervision.deadlines import Deadlines, OpenCalls
from tests.supervision.clock import ManualClock


def calls_of(clock: ManualClock) -> OpenCalls:
    return OpenCalls(Deadlines(60.0, {"ready": 5.0}), clock)


def test_a_verb_has_its_own_deadline_or_the_default() -> None:
    deadlines = Deadlines(60.0, {"ready": 5.0})
    assert (deadlines.of("ready"), deadlines.of("generate")) == (5.0, 60.0)


def test_a_deadline_must_be_positive_and_the_verb_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.deadlines_s\.ready"):
        Deadlines(60.0, {"ready": 0.0})


def test_a_call_is_overdue_from_its_deadline_on_and_reported_once() -> None:
    clock = ManualClock()
    calls = calls_of(clock)
    slow, quick = calls.begin("a", "generate"), calls.begin("b", "ready")
    assert calls.next_due() == 5.0
    clock.now = 4.9
    assert calls.overdue() == []
    clock.now = 5.0
    assert calls.overdue() == [quick]
    assert calls.overdue() == []
    clock.now = 61.0
    assert calls.overdue() == [slow]
    assert slow.overdue_s(clock.now) == 1.0
    assert (len(calls), calls.next_due()) == (0, None)


def test_an_answered_call_is_never_overdue_and_tells_how_long_it_took() -> None:
    clock = ManualClock()
    calls = calls_of(clock)
    call = calls.begin("a", "ready")
    clock.now = 3.0
    assert calls.end(call) == 3.0
    clock.now = 100.0
    assert calls.overdue() == []
    assert calls.next_due() is None


def test_overdue_calls_come_in_the_order_in_which_they_were_due() -> None:
    clock = ManualClock()
    calls = calls_of(clock)
    late = calls.begin("a", "generate")
    clock.now = 56.0
    later = calls.begin("a", "ready")
    clock.now = 500.0
    assert calls.overdue() == [late, later]
