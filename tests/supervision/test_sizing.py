"""Sizing: who waits for whom decides, with patience and a pause after each change."""

from __future__ import annotations

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.supervision.sizing import Sizer, SizingRule, Waiting
from tests.supervision.clock import ManualClock

TRAINER_WAITS = Waiting(trainer_s=8.0, idle_s=1.0, elapsed_s=10.0, num_shards=64)
GENERATORS_IDLE = Waiting(trainer_s=1.0, idle_s=9.0, elapsed_s=10.0, num_shards=64)
BALANCED = Waiting(trainer_s=4.0, idle_s=5.0, elapsed_s=10.0, num_shards=64)
RULE = SizingRule(2, 8, patience=3, cooldown_s=60.0)


def sizes(sizer: Sizer, clock: ManualClock, size: int, steps: list[Waiting]) -> list[int]:
    seen = []
    for step in steps:
        clock.advance(10.0)
        size = sizer.wanted(size, step)
        seen.append(size)
    return seen


def test_the_fleet_grows_when_the_trainer_has_waited_for_some_steps_and_rests_after_each_change() -> None:
    clock = ManualClock()
    assert sizes(Sizer(RULE, clock), clock, 4, [TRAINER_WAITS] * 9) == [4, 4, 5, 5, 5, 5, 5, 5, 6]


def test_the_fleet_shrinks_when_generators_have_nothing_to_do_but_not_below_its_minimum() -> None:
    clock = ManualClock()
    rule = SizingRule(2, 8, patience=1, cooldown_s=0.0)
    assert sizes(Sizer(rule, clock), clock, 4, [GENERATORS_IDLE] * 4) == [3, 2, 2, 2]


def test_between_the_thresholds_nothing_changes_and_patience_starts_anew() -> None:
    clock = ManualClock()
    steps = [TRAINER_WAITS, TRAINER_WAITS, BALANCED, TRAINER_WAITS, TRAINER_WAITS, GENERATORS_IDLE, GENERATORS_IDLE]
    assert sizes(Sizer(RULE, clock), clock, 4, steps) == [4] * 7


def test_a_large_fleet_moves_by_a_share_of_its_size() -> None:
    clock = ManualClock()
    sizer = Sizer(SizingRule(10, 1000, patience=1, cooldown_s=0.0), clock)
    crowded = Waiting(9.0, 0.0, 10.0, num_shards=10_000)
    assert sizes(sizer, clock, 100, [crowded, crowded]) == [125, 156]


def test_no_more_generators_than_shards() -> None:
    clock = ManualClock()
    sizer = Sizer(SizingRule(1, 8, patience=1, cooldown_s=0.0), clock)
    few = Waiting(trainer_s=9.0, idle_s=0.0, elapsed_s=10.0, num_shards=3)
    assert sizes(sizer, clock, 2, [few, few, few]) == [3, 3, 3]


def test_a_size_outside_the_bounds_is_brought_inside_at_once() -> None:
    sizer = Sizer(RULE, ManualClock())
    assert sizer.wanted(1, BALANCED) == 2
    assert sizer.wanted(99, BALANCED) == 8


def test_a_maximum_below_the_minimum_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not be below"):
        SizingRule(4, 2)
