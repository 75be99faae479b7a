"""Collapse and drift, counted by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_ray.hacking.language import (
    answer_entropy,
    common_answer,
    known_pairs,
    novel_share,
    odd_characters,
    repeated_answers,
    unknown_share,
    vocabulary,
)

TEXTS = ["The door is red.", "the door is RED", "It sells rope.", "The roof is turf."]


def test_one_answer_in_other_letters_is_one_answer() -> None:
    assert common_answer(TEXTS) == 0.5
    assert answer_entropy(TEXTS) == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(4))
    assert answer_entropy(["a"] * 5) == 0.0
    assert answer_entropy(["a", "b", "c"]) == pytest.approx(1.0)
    assert (common_answer([]), answer_entropy([]), repeated_answers([], [])) == (0.0, 1.0, 0.0)


def test_an_answer_repeats_only_over_different_prompts() -> None:
    assert repeated_answers(TEXTS, ["p", "p", "q", "r"]) == 0.0
    assert repeated_answers(TEXTS, ["p", "q", "q", "r"]) == 0.5


def test_odd_characters_are_no_text_in_any_language() -> None:
    assert odd_characters(["good\n\tday", "día", "日本"]) == 0.0
    assert odd_characters(["ab\ufffd\x00"]) == 0.5
    assert odd_characters([""]) == 0.0


def test_words_are_known_in_any_case_and_numbers_always() -> None:
    known = vocabulary(["The door's red, isn't it?"])
    assert known == {"the", "door's", "red", "isn't", "it"}
    assert unknown_share(["Red 12 gloop the"], known) == 0.25
    assert unknown_share([""], known) == 0.0


def test_new_neighbours_are_new_though_their_words_are_not() -> None:
    known = known_pairs(["the door is red", "the roof is turf"])
    assert novel_share(["the door is turf"], known) == 0.0
    assert novel_share(["red is the door"], known) == pytest.approx(2 / 3)
    assert novel_share(["red"], known) == 0.0
