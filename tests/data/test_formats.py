"""Records of labelled steps, and rankings of one axis."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_ray.data.formats import Dropped, parse_preference, parse_step_labelled
from rlhf_ray.data.jsonl import Record
from rlhf_ray.data.recorded import prompt_id_of
from rlhf_ray.errors import DataError
from rlhf_ray.records import Message, Ranking, StepLabelled

USER = (Message("user", "2 + 2 * 3?"),)


def steps(**changes: Any) -> Record:
    value = {"prompt": "2 + 2 * 3?", "completions": ["2 * 3 = 6", "2 + 6 = 9"], "labels": [True, False]}
    return Record(value | changes, "s.jsonl:4")


def test_a_response_in_steps_has_a_label_for_each() -> None:
    wanted = StepLabelled(prompt_id_of(USER), USER, ("2 * 3 = 6", "2 + 6 = 9"), (True, False))
    assert parse_step_labelled(steps()) == wanted
    assert parse_step_labelled(steps(labels=[1, 0])) == wanted
    assert parse_step_labelled(steps(prompt=[{"role": "user", "content": "2 + 2 * 3?"}])) == wanted


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"completions": "2 * 3 = 6"}, r'^s\.jsonl:4: "completions" must be a list of texts, one a step'),
        ({"completions": []}, '"completions" must be a list'),
        ({"labels": [True]}, '"labels" must be 2 times true or false'),
        ({"labels": [True, 0.5]}, '"labels" must be 2 times true or false'),
        ({"labels": None}, '"labels" must be 2 times'),
    ],
)
def test_what_is_no_labelled_response_is_named_with_its_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_step_labelled(steps(**changes))


def test_an_empty_step_is_of_no_use() -> None:
    assert isinstance(parse_step_labelled(steps(completions=["a", " "])), Dropped)


def test_a_ranking_may_say_what_was_compared() -> None:
    ranked = parse_preference(
        Record({"prompt": "q", "responses": ["a", "b"], "ranks": [1, 0], "axis": "honest"}, "r.jsonl:1")
    )
    pair = parse_preference(Record({"prompt": "q", "chosen": "a", "rejected": "b"}, "r.jsonl:2"))
    assert isinstance(ranked, Ranking)
    assert isinstance(pair, Ranking)
    assert (ranked.axis, pair.axis) == ("honest", "")
