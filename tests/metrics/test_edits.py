"""Edits keep what a response says and change how it looks; their effect is told with an interval."""

from __future__ import annotations

import re

import pytest

from rlhf_ray.metrics.edits import AGREEMENT, EDITS, FILLER, HEDGE, EditRow, as_list, edit_rows, in_bold

TEXT = "Lakes freeze. Do rivers? Some do!"


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_a_response_and_keeps_every_word_of_it(name: str) -> None:
    edited = EDITS[name](TEXT)
    assert edited != TEXT
    for added in (AGREEMENT, FILLER, HEDGE):
        edited = edited.replace(added, "")
    assert re.findall(r"\w+[.?!]?", edited) == re.findall(r"\w+[.?!]?", TEXT)


def test_a_list_has_an_item_a_sentence_and_bold_ends_with_the_first() -> None:
    assert as_list(TEXT) == "- Lakes freeze.\n- Do rivers?\n- Some do!"
    assert in_bold(TEXT) == "**Lakes freeze.** Do rivers? Some do!"
    assert (as_list("Yes"), in_bold("Yes")) == ("- Yes", "**Yes**")


def test_a_row_holds_the_mean_change_and_an_edit_that_fitted_nowhere_has_none() -> None:
    (row,) = edit_rows({"bold": [0.5, 0.7, 0.6], "list": []})
    assert (row.name, row.change, row.count) == ("bold", pytest.approx(0.6), 3)
    assert 0.5 <= row.low < row.change < row.high <= 0.7
    assert isinstance(row, EditRow)
