"""A filled-in page becomes a judgement in the candidates' own order, and can be filled in from it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rlhf_ray.feedback.records import Judgement
from rlhf_ray.labelling.answers import MAX_COMMENT, draft_of, fields_of, judgement_of
from rlhf_ray.labelling.errors import AnswerError

AXES = ("helpful", "honest")
ORDER = (2, 0, 1)  # A is candidate 2, B is 0, C is 1


def read(fields: Mapping[str, str], verdict: str = "ranked", **changes: Any) -> Judgement:
    settings: dict[str, Any] = {
        "item_id": "i",
        "annotator": "ann",
        "order": ORDER,
        "axes": AXES,
        "scale": 5,
        "guideline": "v1",
        "at_most_s": 60.0,
        "corrects": None,
    }
    return judgement_of(fields, verdict=verdict, **{**settings, **changes})


def test_ranks_and_ratings_by_place_become_those_of_candidates_without_gaps() -> None:
    said = read({"rank-0": "3", "rank-1": "1", "rank-2": "3", "rate-1-0": "5", "seconds": "12", "comment": " short "})
    assert said.ranks == (0, 1, 1)
    assert said.ratings == {"honest": (None, None, 5.0)}
    assert (said.seconds, said.reason, said.shown_order, said.guideline) == (12.0, "short", ORDER, "v1")


def test_what_is_not_ranked_is_named_by_its_letter() -> None:
    with pytest.raises(AnswerError, match=r"Not ranked yet: A, C\.") as error:
        read({"rank-1": "1"})
    assert error.value.field == "rank-0"


@pytest.mark.parametrize("wrong", ["0", "4", "1.5", "-1", "\u0661", "first"])
def test_a_rank_is_one_of_the_numbers_on_the_page(wrong: str) -> None:
    with pytest.raises(AnswerError, match="a number from 1 to 3"):
        read({"rank-0": wrong, "rank-1": "1", "rank-2": "1"})


def test_a_rating_off_the_scale_a_reason_off_the_list_and_a_verdict_of_no_button_are_refused() -> None:
    ranked = {"rank-0": "1", "rank-1": "1", "rank-2": "1"}
    with pytest.raises(AnswerError, match="a number from 1 to 5"):
        read({**ranked, "rate-0-0": "6"})
    with pytest.raises(AnswerError, match="from the list"):
        read({**ranked, "why": "because"})
    with pytest.raises(AnswerError, match="Choose one of the buttons"):
        read(ranked, verdict="great")
    with pytest.raises(AnswerError, match="under 2000 characters"):
        read({**ranked, "comment": "x" * (MAX_COMMENT + 1)})


@pytest.mark.parametrize("verdict", ["skipped", "flagged"])
def test_skip_and_flag_need_a_reason_and_keep_no_ranks(verdict: str) -> None:
    with pytest.raises(AnswerError, match="Say why"):
        read({"rank-0": "1"}, verdict=verdict)
    said = read({"rank-0": "1", "why": "Personal data", "comment": "a phone number"}, verdict=verdict)
    assert (said.verdict, said.ranks, said.reason) == (verdict, (), "Personal data: a phone number")


def test_all_bad_needs_nothing_more() -> None:
    said = read({}, verdict="all_bad")
    assert (said.verdict, said.ranks, said.reason) == ("all_bad", (), "")


@pytest.mark.parametrize(("said", "kept"), [("999", 60.0), ("-3", 0.0), ("nan", 60.0), ("inf", 60.0), ("soon", 60.0)])
def test_the_page_s_time_is_believed_up_to_the_time_that_has_passed(said: str, kept: float) -> None:
    assert read({"seconds": said}, verdict="all_bad").seconds == kept


def test_a_judgement_fills_the_page_as_it_was() -> None:
    fields = {
        "rank-0": "2",
        "rank-1": "1",
        "rank-2": "2",
        "rate-0-1": "4",
        "rate-1-2": "1",
        "seconds": "9",
        "why": "Personal data",
        "comment": "see: line 2",
    }
    assert fields_of(read(fields), ORDER, AXES) == fields
    only_comment = {"rank-0": "1", "rank-1": "1", "rank-2": "1", "seconds": "9", "comment": "odd: yes"}
    assert fields_of(read(only_comment), ORDER, AXES) == only_comment


def test_a_draft_keeps_the_page_s_fields_and_nothing_else() -> None:
    sent = {"rank-0": "1", "rank-9": "1", "rate-1-2": "3", "rate-2-0": "3", "comment": "x" * 9999, "secret": "s"}
    assert draft_of(sent, count=3, num_axes=2) == {"rank-0": "1", "rate-1-2": "3", "comment": "x" * MAX_COMMENT}
