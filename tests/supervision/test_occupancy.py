"""Seconds of waiting, by hand."""

from __future__ import annotations

from rlhf_ray.supervision.occupancy import Occupancy
from rlhf_ray.supervision.sizing import Waiting
from tests.supervision.clock import ManualClock


def test_waiting_and_idle_seconds_are_those_of_the_time_between_two_readings() -> None:
    clock = ManualClock()
    occupancy = Occupancy(clock)
    occupancy.members(2)
    clock.advance(4.0)  # nobody asks: both are idle
    occupancy.asked(num_shards=5)
    occupancy.busy(1)
    clock.advance(6.0)  # one of two is idle
    occupancy.busy(0)
    occupancy.answered()
    assert occupancy.reading() == Waiting(trainer_s=6.0, idle_s=(2 * 4 + 6) / 2, elapsed_s=10.0, num_shards=5)
    clock.advance(1.0)
    assert occupancy.reading() == Waiting(trainer_s=0.0, idle_s=1.0, elapsed_s=1.0, num_shards=0)


def test_two_calls_at_the_same_time_wait_once() -> None:
    clock = ManualClock()
    occupancy = Occupancy(clock)
    occupancy.asked(1)
    clock.advance(1.0)
    occupancy.asked(3)
    clock.advance(1.0)
    occupancy.answered()
    clock.advance(1.0)
    occupancy.answered()
    clock.advance(1.0)
    reading = occupancy.reading()
    assert (reading.trainer_s, reading.elapsed_s, reading.num_shards) == (3.0, 4.0, 3)
