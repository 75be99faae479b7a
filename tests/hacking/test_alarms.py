"""When alarms are raised: planted series, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rlhf_ray.config.alarms import DEFAULT_RULES, AlarmRule
from rlhf_ray.hacking.alarms import AlarmBoard, Seen, observed

ABOVE_ONE = AlarmRule("text/words", limit=1.0)


def fires_at(rule: AlarmRule, values: Sequence[float]) -> list[int]:
    """The indices of the values at which the rule fires."""
    seen, fired = Seen(), []
    for index, value in enumerate(values):
        seen, reason = observed(rule, seen, value)
        if reason:
            fired.append(index)
    return fired


def test_a_threshold_fires_once_and_again_after_it_has_cleared() -> None:
    assert fires_at(ABOVE_ONE, [0, 1, 2, 3, 1, 2]) == [2, 5]
    assert fires_at(replace(ABOVE_ONE, side="below"), [2, 1, 0.5, 0.5]) == [2]


def test_patience_asks_for_as_many_in_a_row() -> None:
    assert fires_at(replace(ABOVE_ONE, patience=3), [2, 2, 0, 2, 2, 2, 2]) == [5]


def test_it_fires_again_while_it_holds_where_that_is_asked_for() -> None:
    assert fires_at(replace(ABOVE_ONE, patience=2, again_after=3), [2] * 9) == [1, 4, 7]


def test_a_warm_up_is_not_judged_but_its_first_value_is_the_start() -> None:
    assert fires_at(replace(ABOVE_ONE, warmup=2), [5, 5, 5, 5]) == [2]
    assert fires_at(replace(ABOVE_ONE, against="start_difference", warmup=1), [3, 9, 3.5, 4.5]) == [1, 3]


def test_a_ratio_is_to_the_first_value_and_of_nothing_there_is_none() -> None:
    ratio = replace(ABOVE_ONE, against="start_ratio", limit=1.5)
    assert fires_at(ratio, [10, 14, 15, 15.5]) == [3]
    assert fires_at(ratio, [0, 5, 50]) == []
    assert fires_at(replace(ratio, side="below", limit=0.5), [10, 5, 4]) == [2]


def test_what_is_no_number_is_no_observation() -> None:
    assert fires_at(replace(ABOVE_ONE, patience=2), [2, math.nan, 2, math.inf]) == [2]


def test_a_trend_needs_its_whole_window_in_order() -> None:
    trend = AlarmRule("text/words", kind="trend", limit=0.01, window=5)
    assert fires_at(trend, [1, 2, 3, 4, 5]) == [4]
    assert fires_at(trend, [2, 1, 3, 4, 5, 6]) == [5]
    assert fires_at(trend, [5, 4, 3, 2, 1, 0]) == []
    assert fires_at(replace(trend, side="below"), [5, 4, 3, 2, 1]) == [4]


def test_a_change_sums_up_deviations_beyond_half_a_one() -> None:
    rule = AlarmRule("text/words", kind="change", limit=4.0, warmup=3)
    calm = [9.0, 10.0, 11.0]  # mean 10, deviation 1
    assert fires_at(rule, [*calm, 10.5, 10.5, 10.5, 10.5]) == []
    assert fires_at(rule, [*calm, 11.5, 11.5, 11.5, 11.5, 11.5]) == [7]  # 1, 2, 3, 4, then above it
    assert fires_at(rule, [*calm, 8.5, 8.5, 8.5, 8.5, 8.5]) == []
    assert fires_at(replace(rule, side="below"), [*calm, 8.5, 8.5, 8.5, 8.5, 8.5]) == [7]


def test_a_warm_up_that_stood_still_does_not_make_rounding_a_change() -> None:
    rule = AlarmRule("text/words", kind="change", limit=5.0, warmup=3)
    assert fires_at(rule, [10.0, 10.0, 10.0, 10.001, 9.999, 10.001, 10.0]) == []
    assert fires_at(rule, [10.0, 10.0, 10.0, 11.0]) == [3]


def test_the_message_says_what_was_seen() -> None:
    board = AlarmBoard({"words": replace(ABOVE_ONE, patience=2), "other": replace(ABOVE_ONE, metric="text/lists")})
    assert board.observe({"text/words": 2.0}) == []
    [fired] = board.observe({"text/words": 2.5})
    assert (fired.name, fired.metric, fired.value, fired.action) == ("words", "text/words", 2.5, "warn")
    assert fired.message == "text/words is 2.5, above the limit of 1, 2 times in a row"


def test_a_pattern_watches_each_of_its_metrics_on_its_own() -> None:
    board = AlarmBoard({"style": AlarmRule("style/*", limit=0.5, patience=2)})
    assert board.observe({"style/list": 1.0, "style/bold": 0.0, "text/words": 9.0}) == []
    assert board.observe({"style/list": 0.0, "style/bold": 1.0}) == []
    assert [fired.metric for fired in board.observe({"style/list": 1.0, "style/bold": 1.0})] == ["style/bold"]


def test_a_rule_that_is_off_says_nothing() -> None:
    assert AlarmBoard({"words": replace(ABOVE_ONE, enabled=False)}).observe({"text/words": 9.0}) == []


RULES = {
    "threshold": replace(ABOVE_ONE, patience=2, again_after=3),
    "trend": AlarmRule("text/words", kind="trend", limit=0.05, window=4),
    "change": AlarmRule("text/words", kind="change", limit=2.0, warmup=3),
    "start": replace(ABOVE_ONE, against="start_difference"),
}
SERIES = [0.5, 0.7, 0.4, 0.9, 1.3, 1.4, 1.6, 0.2, 1.9, 2.2, 2.3, 2.5, 2.6, 2.8]


@pytest.mark.parametrize("cut", range(len(SERIES)))
def test_a_board_that_is_taken_up_anywhere_raises_what_it_would_have_raised(cut: int) -> None:
    whole, first, second = (AlarmBoard(RULES) for _ in range(3))
    expected = [whole.observe({"text/words": value}) for value in SERIES]
    found = [first.observe({"text/words": value}) for value in SERIES[:cut]]
    second.restore(json.loads(json.dumps(first.state())))
    found += [second.observe({"text/words": value}) for value in SERIES[cut:]]
    assert found == expected
    assert second.state() == whole.state()


def test_a_board_forgets_rules_that_are_gone() -> None:
    board = AlarmBoard(RULES)
    board.observe({"text/words": 2.0})
    state = board.state()
    fewer = AlarmBoard({"start": RULES["start"]})
    fewer.restore(state)
    assert set(fewer.state()) == {"start"}


def test_the_rules_that_are_always_there_only_warn() -> None:
    assert {rule.action for rule in DEFAULT_RULES.values()} == {"warn"}
