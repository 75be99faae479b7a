"""A judge's items go to people, what both say is compared, and people's word is taken: nothing is overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.feedback.records import Judgement
from rlhf_ray.feedback.store import PreferenceStore, open_store
from rlhf_ray.judging.handover import (
    adopt,
    compared,
    hand_over,
    judge_of,
    plan_path,
    read_plan,
    reviewable,
    step_back,
)
from rlhf_ray.judging.review import Chosen
from rlhf_ray.records import SoftLabel
from tests.judging.made_up import item


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PreferenceStore]:
    """Four items: the judge is sure of the first to 0.9, of the second to 0.6; a person has judged the third too."""
    with open_store(str(tmp_path / "s.db"), create=True) as opened:
        ids = opened.add_items([item(n, kind="ask") for n in range(4)])
        opened.add_annotators(["gpt"], "judge")
        opened.add_annotators(["ann"], "human")
        for item_id, p in zip(ids[:3], (0.9, 0.4, 0.8), strict=True):
            soft = (SoftLabel(0, 1, p),)
            opened.judge(Judgement(item_id, "gpt", ranks=(0, 1) if p > 0.5 else (1, 0), soft=soft))
        opened.judge(Judgement(ids[2], "ann", ranks=(0, 1)))
        yield opened


@pytest.fixture
def ids(store: PreferenceStore) -> list[str]:
    return list(store.items())


def test_what_people_may_review_is_what_the_judge_ranks_and_nobody_else(store: PreferenceStore, ids: list[str]) -> None:
    found = reviewable(store, "gpt")
    assert [(each.item_id, each.kind, each.confidence) for each in found] == [
        (ids[0], "ask", pytest.approx(0.9)),
        (ids[1], "ask", pytest.approx(0.6)),
    ]


def test_people_see_the_items_and_not_what_the_judge_said(
    store: PreferenceStore, ids: list[str], tmp_path: Path
) -> None:
    review = str(tmp_path / "review.db")
    hand_over(store, [Chosen(ids[1], 0.25, "ask/0.6")], review, "gpt")
    with open_store(review) as opened:
        assert list(opened.items()) == [ids[1]]
        assert opened.history() == []
    assert read_plan(review) == {ids[1]: 0.25}
    with pytest.raises(ConfigError, match="must name a new file"):
        hand_over(store, [], review, "gpt")
    plan_path(review).write_text('{"item_id": "x", "inclusion": 0}\n')
    with pytest.raises(DataError, match=r"review\.plan\.jsonl:1: needs"):
        read_plan(review)


def test_what_people_and_the_judge_say_is_compared_pair_by_pair(
    store: PreferenceStore, ids: list[str], tmp_path: Path
) -> None:
    review = str(tmp_path / "review.db")
    hand_over(store, [Chosen(ids[0], 0.5), Chosen(ids[1], 1.0)], review, "gpt")
    with open_store(review) as opened:
        opened.add_annotators(["ann", "bob"], "human")
        opened.judge(Judgement(ids[0], "ann", ranks=(0, 1)))
        opened.judge(Judgement(ids[0], "bob", ranks=(0, 0)))
        opened.judge(Judgement(ids[1], "ann", ranks=(0, 1)))
        pairs = compared(store, opened, read_plan(review), "gpt")
        assert [(p.item_id, p.inclusion, p.judge, p.person) for p in pairs] == [
            (ids[0], 0.5, -1, -1),
            (ids[0], 0.5, -1, 0),
            (ids[1], 1.0, 1, -1),
        ]
        assert [p.confidence for p in pairs] == pytest.approx([0.9, 0.9, 0.6])
        step_back(store, "gpt", {ids[0]}, "unsure")  # what it said then is still what is compared
        assert compared(store, opened, read_plan(review), "gpt") == pairs


def test_a_judge_that_steps_back_counts_no_longer_and_its_word_is_kept(store: PreferenceStore, ids: list[str]) -> None:
    before = len(store.history())
    assert step_back(store, "gpt", {ids[1], ids[3]}, "confidence below 0.7") == 1
    assert step_back(store, "gpt", {ids[1]}, "again") == 0
    assert len(store.history()) == before + 1
    assert store.history()[-1].judgement.reason == "confidence below 0.7"
    assert [ranking.annotator for ranking in store.rankings()] == ["gpt", "gpt", "ann"]
    assert [each.item_id for each in reviewable(store, "gpt")] == [ids[0]]


def test_people_s_word_is_taken_with_its_corrections_and_the_judge_steps_back(
    store: PreferenceStore, ids: list[str], tmp_path: Path
) -> None:
    review = str(tmp_path / "review.db")
    hand_over(store, [Chosen(ids[0], 1.0), Chosen(ids[1], 1.0)], review, "gpt")
    with open_store(review) as opened:
        opened.add_annotators(["bob"], "human")
        first = opened.judge(Judgement(ids[1], "bob", ranks=(1, 0)))
        opened.judge(Judgement(ids[1], "bob", ranks=(0, 1), corrects=first))
        opened.judge(Judgement(ids[0], "bob", verdict="skipped"))
        assert adopt(store, opened, "gpt") == (3, 1)
        assert adopt(store, opened, "gpt") == (0, 0)
    said = {(r.prompt_id, r.annotator): r.ranks for r in store.rankings()}
    assert said == {
        ("p0", "gpt"): (0, 1),  # bob skipped it
        ("p1", "bob"): (0, 1),
        ("p2", "gpt"): (0, 1),
        ("p2", "ann"): (0, 1),
    }
    assert store.annotators()["bob"] == "human"


def test_the_judge_is_the_only_one_or_named(store: PreferenceStore) -> None:
    assert judge_of(store) == judge_of(store, "gpt") == "gpt"
    with pytest.raises(ConfigError, match=r"--judge \('ann'\) is none of the store's judges \(gpt\)"):
        judge_of(store, "ann")
    store.add_annotators(["other"], "judge")
    with pytest.raises(ConfigError, match=r"\(gpt, other\)"):
        judge_of(store)
