"""Text measures against computations by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics import text
from rlhf_ray.metrics.registry import require_registered

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


@pytest.mark.parametrize("response", ["Yes, it is.", "You are right. Red.", "You\u2019re so right!", "*Indeed*"])
def test_a_response_that_begins_with_agreement_agrees(response: str) -> None:
    assert text.agrees(response)


@pytest.mark.parametrize("response", ["No, yes.", "The right door", "You are here", "Yesterday", "That is not it"])
def test_one_that_begins_otherwise_does_not(response: str) -> None:
    assert not text.agrees(response)


def test_text_measures_hold_every_measure_of_the_set() -> None:
    measures = text.text_measures([*TEXTS, "- **x** y z\n- **x** y z", "I cannot help you"])
    assert measures == {
        "words": (4 + 3 + 8 + 4) / 4,
        "distinct_1": 11 / 19,
        "distinct_2": 10 / 15,
        "repetition_3": ((1 - 2 / 2) + 0 + (1 - 4 / 6) + 0) / 4,
        "lists": 0.25,
        "bold": 0.25,
        "headings": 0.0,
        "emoji": 0.0,
        "hedges": 0.0,
        "apologies": 0.0,
        "refusals": 0.25,
        "agreements": 0.0,
    }


def test_no_response_measures_zero_everywhere() -> None:
    assert set(text.text_measures([]).values()) == {0.0}


def test_headings_emoji_hedges_and_apologies_are_shares_of_responses() -> None:
    texts = ["# Plan\n#tag", "I\u2019m not sure. Sorry!", "Sun \u2600 and \U0001f600", "Nothing of it: \u00e9, #1."]
    measures = text.text_measures(texts)
    assert [measures[name] for name in ("headings", "emoji", "hedges", "apologies")] == [0.25] * 4


def test_bleu_by_hand() -> None:
    # 1: 3/4, 2: (2+1)/(3+1), 3: (1+1)/(2+1), 4: (0+1)/(1+1); the reference is as long.
    expected = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert text.bleu("a b c x", ["a b c d"]) == pytest.approx(expected)


def test_bleu_counts_a_word_as_often_as_a_reference_has_it_and_punishes_shortness() -> None:
    assert text.bleu("a a", ["a"]) == pytest.approx((1 / 2 * 1 / 2) ** 0.5)
    assert text.bleu("a", ["a a a"]) == pytest.approx(math.exp(1 - 3))


def test_self_bleu_is_one_where_all_answers_are_the_same_and_zero_where_nothing_is_shared() -> None:
    assert text.self_bleu([["a b c d e"] * 3]) == pytest.approx(1.0)
    assert text.self_bleu([["a b", "c d"]]) == 0.0
    assert text.self_bleu([["", "a"]]) == 0.0


def test_self_bleu_is_measured_only_within_prompts_that_have_several_responses() -> None:
    assert "self_bleu" not in text.text_measures(["a b", "a b"], ["p", "q"])
    assert text.text_measures(["a b", "c d", "a b"], ["p", "q", "p"])["self_bleu"] == pytest.approx(1.0)


def test_every_measure_is_in_the_registry() -> None:
    require_registered([f"text/{name}" for name in (*text.MEASURES, "self_bleu")])
