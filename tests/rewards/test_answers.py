"""Where the answer stands in a response, and when two answers are the same."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rlhf_ray.rewards.answers import last_answer, last_number, marked_answer, normalised


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}, or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{4} and then #### 5", "4"),
        ("first #### 3\nthen #### 4 apples\nbye", "4 apples"),
        ("The answer is 4.\nThe final answer is: Paris\nI hope so", "Paris"),
        ("Answer: (B) because", "(B) because"),
        ("ANSWER = 7", "7"),
        ("the answering machine is on", None),
        (r"open \boxed{4", None),
        ("", None),
    ],
)
def test_a_marked_answer_is_the_last_in_a_box_else_the_last_that_is_announced(text: str, answer: str | None) -> None:
    assert marked_answer(text) == answer


def test_without_a_mark_the_last_line_is_the_answer() -> None:
    assert last_answer("I think\nParis\n\n  \n") == "Paris"
    assert last_answer(" \n") == ""


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (' "The  Moon." ', "the moon"),
        ("**Paris**", "paris"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}b", "ab"),
        ("Straße", "STRASSE"),
        ("$x$", "x"),
    ],
)
def test_case_width_spaces_and_outer_punctuation_do_not_count(left: str, right: str) -> None:
    assert normalised(left) == normalised(right)


def test_inner_punctuation_and_words_count() -> None:
    assert normalised("a-b") != normalised("ab")
    assert normalised("the moon") != normalised("moon")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000.", 1000),
        ("it costs $1,234,567.50.", Fraction("1234567.5")),
        ("from 3 to 4", 4),
        ("-7", -7),
        ("x = -7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("5-3", 3),
        ("(2)-3", 3),
        ("-$5", -5),
        ("3/4", Fraction(3, 4)),
        ("3 / 4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac{-3}{4}", Fraction(-3, 4)),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("1,00", 0),  # no thousands: two numbers
        ("4 or 1/0", 4),
        ("007", 7),
        ("none", None),
        ("9" * 70, None),
        ("", None),
    ],
)
def test_the_last_number_is_read_exactly(text: str, number: Fraction | int | None) -> None:
    assert last_number(text) == number
