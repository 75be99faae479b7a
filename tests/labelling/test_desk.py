"""The desk over a real store: hand out, keep drafts, take in once, take back, start again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.config.labelling import LabellingConfig
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.feedback.records import Judgement
from rlhf_ray.feedback.store import PreferenceStore
from rlhf_ray.labelling.answers import UNDONE
from rlhf_ray.labelling.assignment import shown_order
from rlhf_ray.labelling.desk import Task, open_desk
from rlhf_ray.labelling.errors import AnswerError
from rlhf_ray.labelling.guidelines import guidelines_of
from tests.labelling.made_up import ITEMS, NO_EXTRAS, Office, item, office, ranked


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Office]:
    with office(tmp_path / "labels.db") as opened:
        yield opened


def task_of(here: Office, annotator: str = "ann") -> Task:
    task = here.desk.place(annotator).task
    assert task is not None
    return task


def test_an_answer_is_kept_by_candidate_with_what_was_shown_and_the_next_item_follows(here: Office) -> None:
    task = task_of(here)
    here.clock.now += 40
    assert here.desk.submit("ann", task.item_id, task.base, "ranked", {**ranked(2, 1, 2), "seconds": "31"}) == "kept"
    (kept,) = here.store.judgements()
    order = shown_order(task.item_id, "ann", 3)
    assert kept.judgement.shown_order == order
    assert [kept.judgement.ranks[candidate] for candidate in order] == [1, 0, 1]
    assert [here.store.item(task.item_id).candidates[candidate].text for candidate in order] == list(task.responses)
    assert (kept.judgement.seconds, kept.judgement.guideline) == (31.0, here.desk.guidelines.version)
    assert here.store.annotators() == {"ann": "human", "bob": "human"}
    place = here.desk.place("ann")
    assert place.task is not None
    assert place.task.item_id != task.item_id
    assert (place.progress.done, place.progress.left, place.last) == (1, 3, kept.judgement_id)


def test_an_answer_that_is_sent_again_is_one_judgement(here: Office) -> None:
    task = task_of(here)
    first = here.desk.submit("ann", task.item_id, task.base, "ranked", ranked(1, 2, 3))
    again = here.desk.submit("ann", task.item_id, task.base, "ranked", ranked(3, 2, 1))
    assert (first, again) == ("kept", "kept_before")
    assert len(here.store.history()) == 1


def test_an_answer_that_is_sent_by_many_at_once_is_one_judgement(here: Office) -> None:
    task, outcomes = task_of(here), list[str]()

    def send() -> None:
        outcomes.append(here.desk.submit("ann", task.item_id, task.base, "ranked", ranked(1, 2, 3)))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["kept", *["kept_before"] * 5]
    assert len(here.store.history()) == 1


def test_people_who_come_at_the_same_time_to_two_servers_get_different_items(tmp_path: Path) -> None:
    names = tuple(f"person{number}" for number in range(8))
    items, settings = [item(n) for n in range(8)], LabellingConfig(names, assignment=NO_EXTRAS)
    with office(tmp_path / "a.db", items, settings) as here, office(tmp_path / "a.db", items, settings) as there:
        given: list[str] = []

        def come(number: int) -> None:
            given.append(task_of((here, there)[number % 2], names[number]).item_id)

        threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(given)) == len(given) == 8


def test_a_lease_is_kept_when_the_server_starts_again_and_runs_out_by_the_clock(tmp_path: Path) -> None:
    with office(tmp_path / "a.db") as here:
        first = task_of(here).item_id
    with office(tmp_path / "a.db") as here:
        assert task_of(here, "bob").item_id != first
        assert task_of(here).item_id == first
    with office(tmp_path / "b.db", ITEMS[:1]) as here:
        task_of(here)
        assert here.desk.place("bob").task is None
        here.clock.now += 31 * 60
        assert task_of(here, "bob").item_id


def test_a_half_made_answer_is_there_when_the_server_starts_again(tmp_path: Path) -> None:
    with office(tmp_path / "a.db") as here:
        task = task_of(here)
        here.desk.keep_draft("ann", task.item_id, 3, {"rank-1": "2", "comment": "hm", "secret": "s"})
        here.desk.keep_draft("ann", task.item_id, 2, {"rank-1": "1"})  # late on its way
    with office(tmp_path / "a.db") as here:
        draft = task_of(here).draft
        assert (draft.revision, draft.fields) == (3, {"rank-1": "2", "comment": "hm"})


def test_keeping_a_draft_keeps_the_item_in_hand(here: Office) -> None:
    task = task_of(here)
    for _ in range(3):
        here.clock.now += 20 * 60
        here.desk.keep_draft("ann", task.item_id, 1, {})
    assert task_of(here, "bob").item_id != task.item_id


def test_undo_adds_a_correction_and_gives_the_item_back_as_it_was_answered(here: Office) -> None:
    task = task_of(here)
    fields = {**ranked(2, 1, 3), "rate-0-1": "4", "comment": "so"}
    here.desk.submit("ann", task.item_id, task.base, "ranked", fields)
    last = here.desk.place("ann").last
    assert last is not None
    assert here.desk.undo("ann", last)
    assert not here.desk.undo("ann", last)  # pressed twice
    assert [kept.judgement.reason for kept in here.store.judgements()] == [UNDONE]
    assert here.store.rankings() == []
    again = task_of(here)
    assert (again.item_id, again.responses) == (task.item_id, task.responses)
    assert fields.items() <= dict(again.draft.fields).items()
    here.desk.submit("ann", again.item_id, again.base, "ranked", ranked(1, 2, 3))
    history = here.store.history()
    assert [kept.judgement.corrects for kept in history] == [None, history[0].judgement_id, history[1].judgement_id]
    assert len(here.store.judgements()) == 1


def test_nobody_else_gets_an_item_while_it_is_taken_back(here: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(here)
    here.desk.submit("ann", task.item_id, None, "all_bad", {})
    last = here.desk.place("ann").last
    assert last is not None
    judge, seen = PreferenceStore.judge, list[str]()

    def judge_while_bob_comes(store: PreferenceStore, judgement: Judgement) -> int:
        kept = judge(store, judgement)
        seen.append(task_of(here, "bob").item_id)
        return kept

    monkeypatch.setattr(PreferenceStore, "judge", judge_while_bob_comes)
    here.desk.undo("ann", last)
    assert seen
    assert task.item_id not in seen
    assert task_of(here).item_id == task.item_id


def test_an_old_page_of_an_item_that_was_taken_back_cannot_answer_it(here: Office) -> None:
    task = task_of(here)
    here.desk.submit("ann", task.item_id, None, "all_bad", {})
    last = here.desk.place("ann").last
    assert last is not None
    here.desk.undo("ann", last)
    with pytest.raises(AnswerError, match="load the page again"):
        here.desk.submit("ann", task.item_id, None, "all_bad", {})


def test_nobody_undoes_what_somebody_else_said(here: Office) -> None:
    task = task_of(here)
    here.desk.submit("ann", task.item_id, None, "all_bad", {})
    last = here.desk.place("ann").last
    assert last is not None
    assert not here.desk.undo("bob", last)
    assert len(here.store.history()) == 1


def test_an_item_that_is_not_there_and_an_answer_that_is_not_complete_are_told_and_nothing_is_kept(
    here: Office,
) -> None:
    with pytest.raises(AnswerError, match="not in hand any more"):
        here.desk.submit("ann", "nothing", None, "all_bad", {})
    with pytest.raises(AnswerError, match="Not ranked yet: B, C"):
        here.desk.submit("ann", task_of(here).item_id, None, "ranked", {"rank-0": "1"})
    assert here.store.history() == []


def test_an_answer_that_comes_after_its_lease_is_kept_all_the_same(here: Office) -> None:
    task = task_of(here)
    here.clock.now += 3600
    assert task_of(here, "bob").item_id == task.item_id
    assert here.desk.submit("ann", task.item_id, task.base, "ranked", ranked(1, 2, 3)) == "kept"


def test_an_answer_from_an_old_page_leaves_the_item_in_hand(here: Office) -> None:
    first = task_of(here)
    here.clock.now += 3600
    task_of(here, "bob")  # has it now, and ann gets another
    second = task_of(here)
    assert second.item_id != first.item_id
    here.desk.submit("ann", first.item_id, first.base, "all_bad", {})
    assert task_of(here).item_id == second.item_id


def test_only_what_people_say_counts_and_only_what_can_be_ranked_is_asked(tmp_path: Path) -> None:
    with office(tmp_path / "a.db", [item(9, ["alone"]), ITEMS[0]]) as here:
        single, rankable = here.store.items()
        here.store.add_annotators(["gpt"], "judge")
        here.store.judge(Judgement(rankable, "gpt", ranks=(0, 1, 2)))
        assert here.desk.size() == 1
        assert task_of(here).item_id == rankable != single


def test_an_answer_that_came_from_a_file_is_taken_back_in_the_order_of_the_page(here: Office) -> None:
    item_id = next(iter(here.store.items()))
    here.store.judge(Judgement(item_id, "ann", ranks=(0, 1, 2)))
    last = here.desk.place("ann").last
    assert last is not None
    here.desk.undo("ann", last)
    order = shown_order(item_id, "ann", 3)
    assert task_of(here).draft.fields == {f"rank-{place}": str(order[place] + 1) for place in range(3)}


def test_items_that_come_while_people_work_are_asked_too(here: Office) -> None:
    assert here.desk.size() == 4
    here.store.add_items([item(7)])
    assert here.desk.size() == 5


def test_a_desk_can_ask_some_of_the_items_only(tmp_path: Path) -> None:
    with office(tmp_path / "a.db") as here:
        wanted = list(here.store.items())[2]
    settings = LabellingConfig(annotators=("ann",), assignment=NO_EXTRAS)
    with open_desk(str(tmp_path / "a.db"), settings, guidelines_of("x"), only=frozenset({wanted})) as desk:
        task = desk.place("ann").task
        assert task is not None
        assert (desk.size(), task.item_id) == (1, wanted)


def test_a_store_that_is_not_there_and_a_name_that_is_a_judge_s_are_refused(tmp_path: Path) -> None:
    settings = LabellingConfig(annotators=("gpt",))
    with (
        pytest.raises(ConfigError, match=r"STORE .* is no file"),
        open_desk(str(tmp_path / "none.db"), settings, guidelines_of("x"), only=frozenset()),
    ):
        pass
    with office(tmp_path / "a.db") as here:
        here.store.add_annotators(["gpt"], "judge")
    with (
        pytest.raises(DataError, match="'gpt' is of the kind 'judge' in this store"),
        open_desk(str(tmp_path / "a.db"), settings, guidelines_of("x"), only=frozenset()),
    ):
        pass


def test_a_new_link_voids_the_old_one_and_only_hashes_are_kept(here: Office, tmp_path: Path) -> None:
    first = here.desk.new_link("ann")
    second = here.desk.new_link("ann")
    assert here.desk.person(first) is None
    assert here.desk.person("") is None
    person = here.desk.person(second)
    assert person is not None
    assert (person.name, person.role) == ("ann", "annotator")
    manager = here.desk.person(here.desk.new_link("manager"))
    assert manager is not None
    assert manager.role == "manager"
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert second.encode() not in written


def test_the_overview_sums_up_what_people_did(tmp_path: Path) -> None:
    questions = [item(0, ["a", "bb"], gold=(0, 1)), item(1), item(2)]
    with office(tmp_path / "a.db", questions) as here:
        for name in ("ann", "bob"):
            for item_id, known in here.store.items().items():
                here.desk.submit(name, item_id, None, "ranked", ranked(*range(1, len(known.candidates) + 1)))
        undone = here.desk.place("bob").last
        assert undone is not None
        here.desk.undo("bob", undone)
        here.desk.submit("bob", here.store.judgement(undone).judgement.item_id, undone + 1, "flagged", {"comment": "x"})
        seen = here.desk.overview()
        assert (seen.items, seen.gold_items, seen.finished, seen.in_hand) == (2, 1, 2, 0)
        assert [(pace.annotator, pace.judged, pace.flagged) for pace in seen.paces] == [("ann", 3, 0), ("bob", 3, 1)]
        assert [(flag.annotator, flag.reason, flag.prompt) for flag in seen.flags] == [("bob", "x", "Question 2")]
        assert seen.shared_pairs == 4
        assert {(a, b) for a, b, _, _ in seen.kappas} == {("ann", "bob")}
        assert sum(wins[0] for wins in seen.places.values()) == 5  # everybody ranked in the order of the page
