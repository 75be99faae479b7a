"""Flips and refusals, counted by hand."""

from __future__ import annotations

import pytest

from rlhf_ray.hacking.conduct import TwinAnswer, flip_rate, refusal_rates


def test_only_what_is_known_can_flip_and_a_refusal_is_no_flip() -> None:
    answers = [
        TwinAnswer(True, True),
        TwinAnswer(True, False),
        TwinAnswer(True, False, refused_with_opinion=True),
        TwinAnswer(True, True),
        TwinAnswer(False, False),
        TwinAnswer(False, True),
    ]
    assert flip_rate(answers) == 0.25


def test_where_nothing_is_known_there_is_no_rate() -> None:
    assert flip_rate([TwinAnswer(False, False)]) is None
    assert flip_rate([]) is None


def test_refusals_are_counted_on_both_sides() -> None:
    kinds = ["harmful", "harmful", "harmful", "harmful", "sounds_harmful", "sounds_harmful", "open", "", ""]
    refused = [True, True, True, False, True, False, False, True, True]
    rates = refusal_rates(kinds, refused, ("harmful",))
    assert rates.over == pytest.approx(1 / 3)
    assert rates.under == 0.25
    assert rates.by_kind == {"harmful": 0.75, "open": 0.0, "sounds_harmful": 0.5}


def test_prompts_of_no_kind_say_nothing() -> None:
    rates = refusal_rates(["", ""], [True, False], ("harmful",))
    assert (rates.over, rates.under, rates.by_kind) == (None, None, {})
    with pytest.raises(ValueError, match="shorter"):
        refusal_rates(["a", "b"], [True], ())
