"""The index of saved rollouts: the same answers as reading everything, kept up to date step by step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.errors import DataError
from rlhf_ray.records import AdaptersOff, Score
from rlhf_ray.rollout_store import SavedShard, step_directory
from rlhf_ray.viewing.library import BELOW, Library
from rlhf_ray.viewing.rollout_query import PAGE, Page, Query, Row, ask, facets, find, stages
from rlhf_ray.viewing.run import Run
from tests.viewing.made_up import HOSTILE, KINDS, MadeUp, made_up_run, rollout, save_step, shard


@pytest.fixture
def made(tmp_path: Path) -> MadeUp:
    return made_up_run(tmp_path / "run", steps=5, per_step=60)


@pytest.fixture
def library(made: MadeUp) -> Library:
    found = Library(Run(made.root, 0, "run"))
    found.refresh()
    return found


def answer(library: Library, **asked: object) -> Page:
    return ask(library.index, Query("ppo", **asked))  # type: ignore[arg-type]


def ids(page: Page) -> list[str]:
    return [row.rollout_id for row in page.rows]


def everything(library: Library) -> list[Row]:
    pages = [answer(library, page=number) for number in range(1, 7)]
    return [row for page in pages for row in page.rows]


def test_every_rollout_is_there_once_with_what_was_saved_of_it(library: Library) -> None:
    rows = everything(library)
    assert len(rows) == len({row.rollout_id for row in rows}) == 300
    row = next(row for row in rows if row.rollout_id == "2/p7/0")
    assert (row.step, row.prompt_id, row.kind, row.finish) == (2, "p7", KINDS[7 % 3], "stop")
    assert (row.prompt, row.response) == (f"Q7 {HOSTILE}", "answer 2 7")
    assert row.score == pytest.approx(2.7)
    assert row.length == len("answer 2 7") + 1
    assert row.kl == pytest.approx(0.5 * row.length)
    assert row.alarms == ()


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        ({"score_from": 3.0, "score_to": 4.05}, lambda row: 3.0 <= row.score <= 4.05),
        ({"length_to": 11, "step_from": 2, "step_to": 3}, lambda row: row.length <= 11 and 2 <= row.step <= 3),
        ({"kl_from": 100.0}, lambda row: row.kl >= 100.0),
        ({"kind": "open"}, lambda row: row.kind == "open"),
        ({"kind": HOSTILE}, lambda row: row.kind == HOSTILE),
        ({"prompt_id": "p9"}, lambda row: row.prompt_id == "p9"),
        ({"text": "ANSWER 17"}, lambda row: "answer" in row.response and "17" in row.response + row.prompt),
        ({"text": "' OR 1=1 --"}, lambda row: False),
        ({"alarm": "*"}, lambda row: row.rollout_id == "2/p1/0"),
        ({"alarm": "length"}, lambda row: row.rollout_id == "2/p1/0"),
        ({"alarm": "len"}, lambda row: False),
        ({"finish": "length"}, lambda row: False),
    ],
)
def test_a_filter_gives_what_reading_everything_gives(
    library: Library, asked: dict[str, object], holds: Callable[[Row], bool]
) -> None:
    expected = {row.rollout_id for row in everything(library) if holds(row)}
    found = answer(library, **asked)
    assert found.count == len(expected)
    assert set(ids(found)) <= expected
    assert len(found.rows) == min(PAGE, len(expected))


@pytest.mark.parametrize("sort", ["step", "score", "length", "kl"])
def test_pages_follow_one_another_in_order(library: Library, sort: str) -> None:
    pages = [answer(library, sort=sort, order="asc", page=number) for number in range(1, 7)]
    values = [vars(row)[sort] for page in pages for row in page.rows]
    assert values == sorted(values)
    assert len({row.rollout_id for page in pages for row in page.rows}) == 300
    backwards = answer(library, sort=sort, order="desc")
    assert ids(backwards) == [row.rollout_id for page in reversed(pages) for row in reversed(page.rows)][:PAGE]


def test_a_page_beyond_the_last_is_the_last(library: Library) -> None:
    beyond = answer(library, page=999)
    assert (beyond.query.page, beyond.pages, beyond.first) == (6, 6, 251)
    assert ids(beyond) == ids(answer(library, page=6))


@pytest.mark.parametrize("sort", ["step", "score", "length", "kl"])
def test_sorting_asks_an_index_and_sorts_nothing(library: Library, sort: str) -> None:
    _, paging, values = Query("ppo", sort=sort, page=3).statements()
    with library.index.connection() as database:
        plan = " ".join(row["detail"] for row in database.execute(f"EXPLAIN QUERY PLAN {paging}", values))
    assert f"COVERING INDEX by_{sort}" in plan
    assert "TEMP B-TREE" not in plan


def test_a_new_step_is_added_and_no_other_is_read_again(
    made: MadeUp, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[int] = []
    add = library.index.add
    monkeypatch.setattr(
        library.index, "add", lambda stage, path, kinds: (added.append(int(path.name[-6:])), add(stage, path, kinds))
    )
    save_step(made.ppo, 6, [shard([rollout(6, 0, "new")], [99.0])])
    library.refresh()
    library.refresh()
    assert added == [6]
    assert (library.progress.done, library.progress.of) == (6, 6)
    assert ids(answer(library, sort="score"))[0] == "6/p0/0"


def test_a_step_that_was_done_again_replaces_what_it_was_and_one_that_is_gone_goes(
    made: MadeUp, library: Library
) -> None:
    save_step(made.ppo, 5, [shard([rollout(5, 0, "again")], [7.0])])
    shutil.rmtree(step_directory(made.ppo / "rollouts", 4))
    library.refresh()
    assert [row.response for row in answer(library, step_from=4).rows] == ["again"]
    assert answer(library).count == 3 * 60 + 1


def test_an_index_is_kept_and_taken_up_again(made: MadeUp, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (made.root / BELOW / "rollouts.db").is_file()
    again = Library(Run(made.root, 0, "run"))
    monkeypatch.setattr(again.index, "add", lambda *_: pytest.fail("was indexed before"))
    again.refresh()
    assert answer(again).count == 300


def test_the_index_may_lie_elsewhere(made: MadeUp, tmp_path: Path) -> None:
    shutil.rmtree(made.root / BELOW, ignore_errors=True)
    Library(Run(made.root, 0, "run"), tmp_path / "cache").refresh()
    assert len(list((tmp_path / "cache").glob("*.db"))) == 1
    assert not (made.root / BELOW).exists()


def test_an_index_of_another_version_is_made_anew(made: MadeUp, library: Library) -> None:
    with library.index.connection() as database:
        database.execute("PRAGMA user_version = 999")
        database.execute("DELETE FROM rollouts")
    again = Library(Run(made.root, 0, "run"))
    again.refresh()
    assert answer(again).count == 300


def test_a_damaged_index_is_made_anew(made: MadeUp, library: Library) -> None:
    path = made.root / BELOW / "rollouts.db"
    for damaged in (b"no database at all", path.read_bytes()[:9000]):
        path.write_bytes(damaged)
        again = Library(Run(made.root, 0, "run"))
        again.refresh()
        assert answer(again).count == 300


def test_a_damaged_step_is_told_and_the_others_are_there(made: MadeUp) -> None:
    (step_directory(made.ppo / "rollouts", 2) / "shard_00000.safetensors").write_bytes(b"x")
    library = Library(Run(made.root, 0, "run"))
    library.refresh()
    assert answer(library).count == 240
    assert "step_000002" in library.progress.problem


def test_alarms_and_kinds_that_come_later_are_taken_in(made: MadeUp, library: Library) -> None:
    made.alarm(3, ["3/p5/0", "2/p1/0"], name="kl")
    (made.ppo / "rollouts" / "kinds.json").write_text('{"p5": "of another kind"}')
    save_step(made.ppo, 6, [shard([rollout(6, 99, "new")], [0.0])])
    library.refresh()
    assert set(ids(answer(library, alarm="kl"))) == {"3/p5/0", "2/p1/0"}
    assert facets(library.index, "ppo").alarms == ("kl", "length")
    assert find(library.index, "ppo", "2/p1/0").alarms == ("kl", "length")  # type: ignore[union-attr]


def test_what_was_not_scored_and_has_no_reference_is_there_without_numbers(made: MadeUp) -> None:
    saved = SavedShard((rollout(7, 0, "x"),), AdaptersOff(), (Score(float("nan"), failed="rm: timed out"),))
    greedy = SavedShard((rollout(7, 1, "y"),), None, ())
    save_step(made.ppo, 7, [saved, greedy])
    library = Library(Run(made.root, 0, "run"))
    library.refresh()
    rows = answer(library, step_from=7).rows
    assert [(row.score, row.kl) for row in rows] == [(None, None), (None, None)]
    assert rows[1].failed == "rm: timed out"
    assert answer(library, step_from=7, score_from=-1e9).count == 0
    assert library.saved(rows[0]).reference is None


def test_of_whole_distributions_the_sampled_tokens_count(made: MadeUp) -> None:
    own = rollout(8, 0, "ab")
    whole = np.full((3, 300), -9.0, dtype=np.float32)
    whole[np.arange(3), own.response_ids] = (-2.0, -3.0, -4.0)
    save_step(made.ppo, 8, [SavedShard((own,), (whole,), (Score(0.0),))])
    library = Library(Run(made.root, 0, "run"))
    library.refresh()
    assert answer(library, step_from=8).rows[0].kl == pytest.approx(-3.0 + 9.0)


def test_a_step_that_vanished_since_is_an_error_that_says_so(made: MadeUp, library: Library) -> None:
    row = find(library.index, "ppo", "2/p1/0")
    assert row is not None
    assert library.saved(row).rollout.rollout_id == "2/p1/0"
    with pytest.raises(DataError, match="has changed since it was indexed"):
        library.saved(replace(row, shard=9))
    shutil.rmtree(step_directory(made.ppo / "rollouts", 2))
    with pytest.raises(DataError, match="no such directory"):
        library.saved(row)


def test_rounds_are_stages_of_their_own(made: MadeUp, library: Library) -> None:
    save_step(made.root / "round_1" / "ppo", 1, [shard([rollout(1, 0, "of a round")], [0.0])])
    library.refresh()
    assert stages(library.index) == ["ppo", "round_1/ppo"]
    assert ask(library.index, Query("round_1/ppo")).rows[0].response == "of a round"
    assert answer(library).count == 300
