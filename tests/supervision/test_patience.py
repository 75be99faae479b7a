"""Limits that follow what was seen, and never fall below what is configured."""

from __future__ import annotations

from rlhf_ray.supervision.patience import Patience


def test_a_verb_that_was_never_answered_has_the_configured_limit() -> None:
    assert Patience(60.0).of("update") == 60.0


def test_a_limit_is_three_times_the_longest_answer_where_that_is_more() -> None:
    patience = Patience(60.0)
    for seconds in (5.0, 50.0, 20.0):
        patience.saw("update", seconds)
    patience.saw("save", 10.0)
    assert (patience.of("update"), patience.of("save")) == (150.0, 60.0)
