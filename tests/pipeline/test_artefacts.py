"""What a stage leaves behind: finished or not, of which key, after how many seconds, and wherever it is moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.pipeline.artefacts import Artefact, ArtefactStore, artefact_key, write_atomically


def artefact(stage: str = "sft", key: str = "k1", **results: Any) -> Artefact:
    return Artefact(stage, key, {"model": "k0"}, {"seed": 0}, "data", "0.1.0", "2026-01-01T00:00:00", 2.5, results)


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "run")


# ----------------------------------------------------------------------------------------------------------------- keys
def test_a_key_has_16_digits_and_changes_with_each_thing_it_is_made_from() -> None:
    base: dict[str, Any] = {"stage": "sft", "settings": {"a": 1, "b": 2}, "data_hash": "d", "parents": {"m": "1"}}
    changed = [
        {"stage": "ppo"},
        {"settings": {"a": 1, "b": 3}},
        {"data_hash": "e"},
        {"parents": {"m": "2"}},
        {"parents": {"m": "1", "n": "1"}},
    ]
    keys = [artefact_key(**base), *(artefact_key(**(base | change)) for change in changed)]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {16}


def test_a_key_does_not_depend_on_the_order_in_which_things_are_named() -> None:
    one = artefact_key(stage="s", settings={"a": 1, "b": 2}, data_hash="d", parents={"m": "1", "n": "2"})
    two = artefact_key(stage="s", settings={"b": 2, "a": 1}, data_hash="d", parents={"n": "2", "m": "1"})
    assert one == two


# ----------------------------------------------------------------------------------------------------- begin and finish
def test_a_stage_is_not_done_until_it_is_finished(store: ArtefactStore) -> None:
    store.begin("sft", "k1")
    (store.directory("sft") / "weights").write_text("w")
    assert store.read("sft") is None
    store.finish(artefact(policy="p", steps=3))
    assert store.read("sft") == artefact(policy="p", steps=3)
    assert not list(store.directory("sft").glob(".*"))


def test_unfinished_work_of_the_same_key_is_kept_and_its_seconds_go_on(store: ArtefactStore) -> None:
    assert store.begin("ppo", "k1") == 0.0
    (store.directory("ppo") / "state").write_text("half done")
    store.note_seconds("ppo", "k1", 40.0)
    assert store.begin("ppo", "k1") == 40.0
    assert (store.directory("ppo") / "state").read_text() == "half done"
    assert store.begin("ppo", "k1") == 40.0


def test_work_of_another_key_is_removed_finished_or_not(store: ArtefactStore) -> None:
    for finished in (False, True):
        store.begin("sft", "k1")
        store.note_seconds("sft", "k1", 9.0)
        (store.directory("sft") / "weights").write_text("old")
        if finished:
            store.finish(artefact())
        assert store.begin("sft", "k2") == 0.0
        assert sorted(path.name for path in store.directory("sft").iterdir()) == ["begun.json"]


def test_beginning_again_takes_the_mark_of_being_done_away(store: ArtefactStore) -> None:
    store.begin("sft", "k1")
    store.finish(artefact())
    store.begin("sft", "k1")
    assert store.read("sft") is None


def test_a_directory_that_no_run_has_made_is_left_alone(store: ArtefactStore) -> None:
    own = store.directory("model")
    own.mkdir(parents=True)
    (own / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"output_dir .* holds a directory 'model' that is not a run's"):
        store.begin("model", "k1")
    assert (own / "precious.txt").read_text() == "mine"


def test_an_empty_directory_may_be_taken(store: ArtefactStore) -> None:
    store.directory("model").mkdir(parents=True)
    assert store.begin("model", "k1") == 0.0


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_note_of_what_was_begun_counts_as_other_work(store: ArtefactStore, text: str) -> None:
    store.begin("sft", "k1")
    (store.directory("sft") / "begun.json").write_text(text)
    (store.directory("sft") / "weights").write_text("whose?")
    assert store.begin("sft", "k1") == 0.0
    assert not (store.directory("sft") / "weights").exists()


@pytest.mark.parametrize("text", ["{", '{"stage": "sft"}', "[]"])
def test_a_damaged_artefact_is_an_error_that_names_file_and_remedy(store: ArtefactStore, text: str) -> None:
    store.begin("sft", "k1")
    (store.directory("sft") / "artefact.json").write_text(text)
    with pytest.raises(DataError, match=r"sft/artefact\.json: damaged .*; delete the directory .*/sft to do"):
        store.read("sft")


def test_a_run_that_was_moved_finds_its_own_files(store: ArtefactStore, tmp_path: Path) -> None:
    store.begin("sft", "k1")
    store.finish(artefact(policy=str(store.root / "sft" / "policy"), other="/elsewhere/weights", steps=3))
    assert "run" not in json.loads((store.directory("sft") / "artefact.json").read_text())["results"]["policy"]
    shutil.move(store.root, tmp_path / "moved")
    moved = ArtefactStore(tmp_path / "moved").read("sft")
    assert moved is not None
    assert moved.results == {
        "policy": str(tmp_path / "moved" / "sft" / "policy"),
        "other": "/elsewhere/weights",
        "steps": 3,
    }


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def crash(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
