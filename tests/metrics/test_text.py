"""Text measures against computations by hand."""

from __future__ import annotations

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics import text

TEXTS = ["a b a b", "a b c"]


def test_distinct_n_counts_over_all_responses() -> None:
    assert text.distinct_n(TEXTS, 1) == pytest.approx(3 / 7)  # a b c of a b a b a b c
    assert text.distinct_n(TEXTS, 2) == pytest.approx(3 / 5)  # ab ba bc of ab ba ab | ab bc


def test_distinct_n_does_not_cross_responses() -> None:
    assert text.distinct_n(["a", "b"], 2) == 0.0
    assert text.distinct_n(["a b", "c d"], 2) == 1.0


def test_distinct_n_of_a_collapsed_policy_falls_with_the_number_of_responses() -> None:
    assert text.distinct_n(["so very good"] * 10, 2) == pytest.approx(2 / 20)


def test_repetition_is_the_share_of_ngrams_seen_before() -> None:
    assert text.repetition("so good so good so good", 2) == pytest.approx(0.6)
    assert text.repetition("fun fun fun fun", 1) == pytest.approx(0.75)
    assert text.repetition("every word is new", 1) == 0.0


def test_repetition_of_a_response_below_n_words_is_zero() -> None:
    assert text.repetition("too short", 3) == 0.0
    assert text.repetition("", 1) == 0.0


def test_mean_repetition_weighs_responses_alike() -> None:
    assert text.mean_repetition(["fun fun fun fun", "one two"], 1) == pytest.approx((0.75 + 0.0) / 2)


def test_n_below_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"n \(0\) must be at least 1"):
        text.distinct_n(TEXTS, 0)


def test_mean_words_counts_what_stands_between_white_space() -> None:
    assert text.mean_words(["one two\n three", "", "it's, -- done"]) == pytest.approx((3 + 0 + 3) / 3)


@pytest.mark.parametrize("line", ["- a", "* a", "  \u2022 a", "1. a", "12) a"])
def test_a_line_with_a_list_mark_is_a_list_item(line: str) -> None:
    assert text.list_share([f"First:\n{line}", "plain"]) == 0.5


@pytest.mark.parametrize("line", ["-a", "5 apples", "1984. ", "*bold*", "a - b", "2024.5 is a number"])
def test_a_line_without_one_is_not(line: str) -> None:
    assert text.list_share([f"First:\n{line}"]) == 0.0


def test_bold_share_counts_responses_not_marks() -> None:
    assert text.bold_share(["**one** and **two**", "__under__", "2 ** 3 ** 4", "**open\nline**"]) == 0.5


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot provide that information.",
        "I\u2019m not able to do this.",
        "As an AI, I have no opinion.",
        "I am not comfortable with the question.",
        "Sorry, I won't.",
        "I must decline.",
    ],
)
def test_set_phrases_are_refusals(response: str) -> None:
    assert text.is_refusal(response)


@pytest.mark.parametrize(
    "response", ["I can't believe how good it is.", "Sorry to hear that! Here is a recipe.", "You cannot help it.", ""]
)
def test_other_uses_of_their_words_are_not(response: str) -> None:
    assert not text.is_refusal(response)


def test_text_measures_hold_every_measure_of_the_set() -> None:
    assert text.text_measures([*TEXTS, "- **x** y z\n- **x** y z", "I cannot help you"]) == text.TextMeasures(
        num_responses=4,
        mean_words=(4 + 3 + 8 + 4) / 4,
        distinct_1=11 / 19,
        distinct_2=10 / 15,
        repetition_3=((1 - 2 / 2) + 0 + (1 - 4 / 6) + 0) / 4,
        list_share=0.25,
        bold_share=0.25,
        refusal_share=0.25,
    )


def test_no_response_measures_zero_everywhere() -> None:
    assert text.text_measures([]) == text.TextMeasures(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
