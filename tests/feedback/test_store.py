"""The store only grows: corrections, histories, several writers, a writer that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy

from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.feedback.records import Candidate, Item, Judgement
from rlhf_ray.feedback.store import PreferenceStore, item_id_of, open_store
from rlhf_ray.records import Message, SoftLabel, TextPrompt

CHECKOUT = Path(__file__).resolve().parents[2]
PROMPT = TextPrompt("p1", (Message("system", "Be brief."), Message("user", "2 + 2?")), "sum", {"answer": "4"})
ITEM = Item(
    PROMPT,
    (
        Candidate("4", "sft@3", {"temperature": 0.7, "top_p": None}, seed=2**63 + 5, token_ids=(7, 1)),
        Candidate("five", "sft@3", {"temperature": 1.0}, seed=2, token_ids=(8, 9, 1)),
        Candidate("It is 4.", "ppo@12", token_ids=(3, 1)),
    ),
    gold_ranks=(0, 1, 0),
)
ITEM_ID = item_id_of(ITEM)
SAID = Judgement(
    ITEM_ID,
    "ann",
    ranks=(0, 2, 1),
    ratings={"helpful": (5.0, None, 4.0)},
    reason="shorter",
    seconds=12.5,
    guideline="v2",
    shown_order=(2, 0, 1),
    soft=(SoftLabel(0, 1, 0.9), SoftLabel(2, 1, 0.75)),
    axis="helpful",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PreferenceStore]:
    with open_store(str(tmp_path / "labels.db"), create=True) as opened:
        opened.add_items([ITEM])
        opened.add_annotators(["ann", "bob"], "human")
        yield opened


def test_what_goes_in_comes_out(store: PreferenceStore) -> None:
    first = store.judge(SAID)
    assert store.items() == {ITEM_ID: ITEM}
    assert store.annotators() == {"ann": "human", "bob": "human"}
    (kept,) = store.judgements()
    assert (kept.judgement_id, kept.judgement) == (first, SAID)
    assert kept.at.endswith("+00:00")
    (ranking,) = store.rankings()
    assert (ranking.messages, ranking.ranks, ranking.annotator, ranking.kind) == (
        PROMPT.messages,
        (0, 2, 1),
        "ann",
        "sum",
    )
    assert ranking.response_token_ids == ((7, 1), (8, 9, 1), (3, 1))
    assert (ranking.soft, ranking.axis) == (SAID.soft, "helpful")
    assert ranking.pairs == ((0, 1), (2, 1))  # soft labels say which pairs there are


def test_one_item_and_one_judgement_can_be_read(store: PreferenceStore) -> None:
    first = store.judge(SAID)
    second = store.judge(replace(SAID, ranks=(1, 0, 0), corrects=first))
    assert store.item(ITEM_ID) == ITEM
    assert store.judgement(first).judgement == SAID  # corrected, and still there
    assert store.judgement(second).judgement.corrects == first
    with pytest.raises(DataError, match="item 'nothing' is not in the store"):
        store.item("nothing")
    with pytest.raises(DataError, match="judgement 99 is not in the store"):
        store.judgement(99)


def test_an_item_is_kept_once_and_a_prompt_s_id_belongs_to_one_text(store: PreferenceStore) -> None:
    assert store.add_items([ITEM, ITEM]) == [ITEM_ID] * 2
    other = replace(ITEM, candidates=(Candidate("4"), Candidate("3")), gold_ranks=())
    assert store.add_items([other]) != [ITEM_ID]
    assert len(store.items()) == 2
    with pytest.raises(DataError, match=r"prompt 'p1' stands in the store with another text"):
        store.add_items([replace(ITEM, prompt=replace(PROMPT, messages=(Message("user", "3 + 3?"),)))])


def test_a_correction_is_a_new_row_and_the_last_one_counts(store: PreferenceStore) -> None:
    first = store.judge(SAID)
    second = store.judge(replace(SAID, ranks=(1, 0, 0), corrects=first))
    third = store.judge(replace(SAID, verdict="all_bad", ranks=(), soft=(), corrects=second))
    bobs = store.judge(replace(SAID, annotator="bob", ranks=(0, 0, 1)))
    assert [kept.judgement_id for kept in store.history()] == [first, second, third, bobs]
    assert [kept.judgement_id for kept in store.judgements()] == [third, bobs]
    assert [ranking.annotator for ranking in store.rankings()] == ["bob"]  # "all bad" ranks nothing
    with pytest.raises(DataError, match=rf"judgement {first} is corrected already; correct its correction"):
        store.judge(replace(SAID, corrects=first))
    with pytest.raises(DataError, match=rf"judgement {bobs} is none of 'ann'"):
        store.judge(replace(SAID, corrects=bobs))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(SAID, item_id="nothing"), "item 'nothing' is not in the store"),
        (replace(SAID, annotator="eve"), "annotator 'eve' is not in the store"),
        (replace(SAID, ranks=(0, 1)), r"ranks \(\(0, 1\)\) must be 3 whole numbers"),
        (replace(SAID, ranks=(0, 1, True)), r"must be 3 whole numbers"),
        (replace(SAID, soft=(SoftLabel(0, 3, 0.5),)), "must name two of 3 ranked candidates"),
        (replace(SAID, soft=(SoftLabel(1, 1, 0.5),)), "must name two of 3 ranked candidates"),
        (replace(SAID, soft=(SoftLabel(0, 1, 1.5),)), "and a probability from 0 to 1"),
        (replace(SAID, verdict="skipped"), "go with the verdict ranked, not skipped"),
        (replace(SAID, ratings={"honest": (1.0,)}), "ratings of 'honest' must be 3 numbers"),
        (replace(SAID, shown_order=(0, 0, 1)), "must name each of 3 candidates once"),
        (replace(SAID, seconds=-1.0), r"seconds \(-1\.0\) must be 0 or more"),
        (replace(SAID, verdict="great"), "verdict \\('great'\\) must be one of ranked"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    store: PreferenceStore, wrong: Judgement, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        store.judge(wrong)
    assert store.history() == []


@pytest.mark.parametrize(
    "statement", ["UPDATE judgements SET reason = ''", "DELETE FROM judgements", "DELETE FROM items"]
)
def test_the_database_itself_refuses_to_forget(store: PreferenceStore, tmp_path: Path, statement: str) -> None:
    store.judge(SAID)
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'labels.db'}")
    with pytest.raises(sqlalchemy.exc.IntegrityError, match="only grows"), engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()
    assert len(store.judgements()) == 1


def test_a_store_that_is_not_there_is_an_error_and_a_url_that_is_none(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"is no file; check the path, or make it"),
        open_store(str(tmp_path / "no.db")),
    ):
        pass
    with pytest.raises(ConfigError, match="cannot be opened"), open_store("nosuchdb://x/y", create=True):
        pass


WRITER = """
import sys
from dataclasses import replace
from tests.feedback.test_store import SAID
from rlhf_ray.feedback.store import open_store
with open_store(sys.argv[1]) as store:
    for number in range(int(sys.argv[3])):
        print(store.judge(replace(SAID, annotator=sys.argv[2], reason=str(number))), flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_writers_at_once_lose_nothing(store: PreferenceStore, tmp_path: Path) -> None:
    writers = [writer(tmp_path / "labels.db", name, 25) for name in ("ann", "bob")]
    answered = [int(line) for process in writers for line in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in writers] == [0, 0]
    assert sorted(answered) == [kept.judgement_id for kept in store.history()]
    assert len(answered) == 50


def test_what_was_acknowledged_before_a_kill_is_there(store: PreferenceStore, tmp_path: Path) -> None:
    process = writer(tmp_path / "labels.db", "ann", 10_000)
    assert process.stdout is not None
    answered = [int(process.stdout.readline()) for _ in range(7)]
    process.send_signal(signal.SIGKILL)
    answered += [int(line) for line in process.stdout.read().split()]  # communicate() would lose what was read ahead
    process.stdout.close()
    process.wait(timeout=30)
    kept = [each.judgement_id for each in store.history()]
    assert kept[: len(answered)] == answered
    assert len(kept) <= len(answered) + 1  # one may have been committed and not yet said
    store.judge(SAID)
