"""Prompts with responses that wait for judgement: from files of items, of single responses, and of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.errors import DataError
from rlhf_ray.feedback.questions import Added, add_questions
from rlhf_ray.feedback.records import Candidate, Item
from rlhf_ray.feedback.store import open_store
from rlhf_ray.records import Message, Ranking


def added(tmp_path: Path, *files: list[dict[str, Any]]) -> tuple[Added, list[Item]]:
    paths = [tmp_path / f"{number}.jsonl" for number in range(len(files))]
    for path, records in zip(paths, files, strict=True):
        write_jsonl(path, records)
    with open_store(str(tmp_path / "labels.db"), create=True) as store:
        done = add_questions(store, [str(path) for path in paths])
        assert store.history() == []
        return done, list(store.items().values())


def test_items_come_in_with_known_answers_and_what_made_the_responses(tmp_path: Path) -> None:
    made = {"text": "4", "model": "sft@3", "sampling": {"temperature": 0.7}, "seed": 5, "token_ids": [7, 1]}
    records = [
        {"prompt": "2 + 2?", "responses": [made, "5"], "gold_ranks": [0, 1], "id": "sum"},
        {"prompt": "Hi", "responses": ["a", "b", "c"]},
    ]
    done, items = added(tmp_path, records)
    assert done == Added(items=2, new=2, gold=1)
    assert items[0].candidates == (Candidate("4", "sft@3", {"temperature": 0.7}, 5, (7, 1)), Candidate("5"))
    assert (items[0].prompt.prompt_id, items[0].gold_ranks, items[1].gold_ranks) == ("sum", (0, 1), ())
    assert added(tmp_path, records)[0] == Added(items=2, new=0, gold=1)


def test_single_responses_of_one_prompt_become_one_item_over_all_files(tmp_path: Path) -> None:
    done, items = added(
        tmp_path,
        [{"prompt": "a", "response": "1", "model": "sft"}, {"prompt": "b", "response": "2"}],
        [{"prompt": "a", "response": "3", "model": "ppo"}, {"prompt": "b", "response": "2"}],
    )
    assert done.items == 2
    assert [item.candidates for item in items] == [(Candidate("1", "sft"), Candidate("3", "ppo")), (Candidate("2"),)]


def test_a_run_s_own_comparisons_come_in_without_their_judgements(tmp_path: Path) -> None:
    ranking = Ranking("p", (Message("user", "Hi"),), ("a", "b"), (1, 0), "simulated", ((1,), (2, 3)), kind="chat")
    _, items = added(tmp_path, [asdict(ranking)])
    assert items[0].prompt.prompt_id == "p"
    assert items[0].candidates == (Candidate("a", token_ids=(1,)), Candidate("b", token_ids=(2, 3)))


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "responses": "text"},
        {"prompt": "a", "responses": []},
        {"prompt": "a", "responses": [1, 2]},
        {"prompt": "a", "responses": [{"text": "x", "temperature": 1}]},
        {"prompt": "a", "responses": ["x", "y"], "gold_ranks": [0]},
        {"prompt": "a", "responses": ["x", "y"], "response_token_ids": [[1]]},
        {"prompt": "a"},
    ],
)
def test_a_bad_record_is_named_by_its_line_and_nothing_comes_in(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "bad.jsonl").write_text(
        json.dumps({"prompt": "b", "responses": ["c", "d"]}) + "\n" + json.dumps(record)
    )
    with open_store(str(tmp_path / "labels.db"), create=True) as store:
        with pytest.raises(DataError, match=r"bad\.jsonl:2: "):
            add_questions(store, [str(tmp_path / "bad.jsonl")])
        assert store.items() == {}
