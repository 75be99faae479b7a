"""The field's records, each as a prompt with its answer or its kind; what cannot be used is told with its place."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_ray.config.suite import Kind
from rlhf_ray.data.jsonl import Record
from rlhf_ray.errors import DataError
from rlhf_ray.suites.formats import parse_item, parse_text


def item(kind: Kind, /, **value: Any) -> Any:
    return parse_item(Record(value, "set.jsonl:3"), kind)


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ({"prompt": "Hello"}, "Hello"),
        ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hello"}]}, "Hello"),
        ({"instruction": "Translate", "input": "Haus"}, "Translate\n\nHaus"),
        ({"instruction": "Sing", "input": "", "generator": "x"}, "Sing"),
        ({"turns": ["first", "second"], "question_id": 81, "category": "writing"}, "first"),
        ({"goal": "Do harm", "target": "Sure"}, "Do harm"),
    ],
)
def test_a_prompt_stands_where_the_field_writes_it(value: dict[str, Any], asked: str) -> None:
    assert item("prompts", **value).messages[-1].content == asked


def test_ids_and_categories_are_kept() -> None:
    prompt = item("prompts", turns=["first"], question_id=81, category="writing")
    assert (prompt.prompt_id, prompt.kind) == ("81", "writing")


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ({"question": "q", "answer": "Paris"}, "Paris"),
        ({"question": "q", "answer": 18}, "18"),
        ({"question": "q", "answer": "She has 9 + 9.\n#### 18"}, "18"),
        ({"question": "q", "answers": ["CO2", "carbon dioxide"]}, "CO2\ncarbon dioxide"),
        ({"question": "q", "answer": {"value": "Au", "aliases": ["Au", "gold"]}}, "Au\ngold"),
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, "B"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}, "A"),
    ],
)
def test_a_question_has_its_answers(value: dict[str, Any], answers: str) -> None:
    assert item("questions", **value).facts["answers"] == answers


def test_choices_are_shown_by_letter() -> None:
    first = item("questions", question="Which?", choices=["one", "two"], answer="b")
    other = item("questions", question="Which?", choices=["one", "three"], answer="b")
    assert first.messages[-1].content == "Which?\nA. one\nB. two"
    assert first.prompt_id != other.prompt_id


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"prompt": "p", "kind": "harmful"}, "harmful"),
        ({"prompt": "p", "label": "safe", "type": "homonyms"}, "harmless"),
        ({"goal": "p"}, "harmful"),
    ],
)
def test_a_refusal_is_due_or_not(value: dict[str, Any], kind: str) -> None:
    assert item("refusals", **value).kind == kind


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("prompts", {"text": "t"}, "set.jsonl:3: has no prompt"),
        ("questions", {"question": "q"}, 'set.jsonl:3: has no "answer"'),
        ("questions", {"question": "q", "choices": ["x", "y"], "answer": 2}, "must be a letter or a place among 2"),
        ("questions", {"question": "q", "choices": ["x"], "answer": 0}, "must be a list of 2 to 26"),
        ("refusals", {"prompt": "p"}, 'must say in "kind" whether the prompt is harmful or harmless'),
    ],
)
def test_what_cannot_be_used_is_told_with_its_place(kind: Kind, value: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        item(kind, **value)


def test_a_text_is_a_text() -> None:
    assert parse_text(Record({"text": "t"}, "x:1")) == "t"
    with pytest.raises(DataError, match='x:1: "text" must be'):
        parse_text(Record({"prompt": "t"}, "x:1"))
