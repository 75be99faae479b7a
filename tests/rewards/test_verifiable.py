"""The built-in rewards, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_ray.records import Graded
from rlhf_ray.rewards.verifiable import (
    BUILT_IN,
    NO_ANSWER,
    choice_answer,
    exact_answer,
    json_valid,
    length_at_most,
    number_answer,
    regex_match,
)


def graded(function: Any, response: str, answer: str = "", **arguments: Any) -> Any:
    (result,) = function(prompts=["?"], responses=[response], facts=[{"answer": answer}], **arguments)
    return result


def all_graded(function: Any, responses: Sequence[str], **arguments: Any) -> list[Any]:
    nothing = [""] * len(responses)
    return list(function(prompts=nothing, responses=responses, facts=[{} for _ in responses], **arguments))


def test_they_are_found_by_name() -> None:
    assert sorted(BUILT_IN) == [
        "choice_answer",
        "exact_answer",
        "json_valid",
        "length_at_most",
        "number_answer",
        "regex_match",
    ]


@pytest.mark.parametrize("function", [exact_answer, number_answer, choice_answer])
def test_a_prompt_without_an_answer_cannot_be_scored(function: Any) -> None:
    assert all_graded(function, ["4"]) == [NO_ANSWER]
    assert graded(function, "4", "") == NO_ANSWER


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("paris.", "Paris", 1.0),
        ("Rome or Paris?\nThe answer is Paris.", "paris", 1.0),
        (r"\boxed{New  York}", "new york", 1.0),
        ("It is Paris", "Paris", 0.0),
        ("", "Paris", 0.0),
    ],
)
def test_exact_answer(response: str, answer: str, score: float) -> None:
    assert graded(exact_answer, response, answer) == score


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("3 and 4 make 1,000.", "1000", 1.0),
        ("so 3/4.", "0.75", 1.0),
        ("#### 18\nThat took 5 steps", "18", 1.0),
        ("The answer is unclear: 4 apples", "4", 1.0),
        ("The answer is four. I count 5", "4", 0.0),
        ("no number", "4", 0.0),
        ("5", "4", 0.0),
        ("72", "Janet has 72\n#### 72", 1.0),
    ],
)
def test_number_answer(response: str, answer: str, score: float) -> None:
    assert graded(number_answer, response, answer) == score


def test_a_number_within_the_tolerance_is_right() -> None:
    assert [graded(number_answer, r, "3.14159", tolerance=0.01) for r in ("3.14", "3.1")] == [1.0, 0.0]


def test_an_answer_that_is_no_number_or_no_choice_is_a_fault_of_the_data() -> None:
    assert graded(number_answer, "4", "four") == Graded(None, failed="the fact 'answer' holds no number: 'four'")
    assert graded(choice_answer, "A", "Z") == Graded(None, failed="the fact 'answer' is none of A, B, C, D, E: 'Z'")


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("B", "B", 1.0),
        ("b)", "B", 1.0),
        ("I think (A), no, (B)", "(B)", 1.0),
        ("The answer is C because of (A).", "C", 1.0),
        ("The answer is option d", "D", 1.0),
        ("Answer: **E**", "E", 1.0),
        (r"\boxed{\text{B}}", "B", 0.0),  # nothing but the letter counts as the letter
        ("A cat sat on it", "A", 0.0),
        ("The answer is Denmark", "D", 0.0),
        ("So it is A", "A", 0.0),
        ("Reasoning (C)\nB", "C", 1.0),
        ("reasoning\n\nB.", "B", 1.0),
        ("F", "B", 0.0),
        ("", "B", 0.0),
    ],
)
def test_choice_answer(response: str, answer: str, score: float) -> None:
    assert graded(choice_answer, response, answer) == score


def test_choices_may_be_others() -> None:
    assert graded(choice_answer, "(G)", "G", choices="ABCDEFGH") == 1.0


def test_regex_match_looks_anywhere_and_refuses_a_bad_pattern() -> None:
    responses = ["<think>x</think> y", "y", "<THINK>\n</think>"]
    assert all_graded(regex_match, responses, pattern="(?is)<think>.*</think>") == [1.0, 0.0, 1.0]
    with pytest.raises(Exception, match=r"missing \), unterminated subpattern"):
        all_graded(regex_match, [], pattern="(")


def test_json_valid() -> None:
    good = ['{"a": 1}', " [1, 2]\n", "3", '```json\n{"a": [1]}\n```']
    bad = ["{'a': 1}", "", "NaN", '{"a": 1} and so on', "[" * 100_000]
    assert all_graded(json_valid, good) == [1.0] * 4
    assert all_graded(json_valid, bad) == [0.0] * 5
    assert all_graded(json_valid, ['{"a": 1, "b": 2}', '{"a": 1}', "[1]"], required=["a", "b"]) == [1.0, 0.0, 0.0]


def test_length_at_most_counts_words_or_characters() -> None:
    responses = ["one two three", "one\ntwo", ""]
    assert all_graded(length_at_most, responses, limit=2) == [0.0, 1.0, 1.0]
    assert all_graded(length_at_most, responses, limit=7, unit="characters") == [0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"unit \('tokens'\) must be words or characters"):
        all_graded(length_at_most, responses, limit=7, unit="tokens")
