"""Files in and out: the whole store without loss, and the field's shapes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.data.tasks import build_task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.feedback.exchange import SHAPES, Shape, export, import_file
from rlhf_ray.feedback.records import Candidate, Item, Judgement
from rlhf_ray.feedback.store import PreferenceStore, item_id_of, open_store
from rlhf_ray.records import Message, SoftLabel, TextPrompt
from tests.feedback.test_store import ITEM, SAID

LONG = Item(
    TextPrompt("p2", (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Name a tree"))),
    (Candidate("Oak"), Candidate("A car")),
)
SOFT = (SoftLabel(0, 1, 0.83),)


def filled(path: Path) -> None:
    """Two items: one judged by ann, corrected by her, and judged by bob; one by a judge, and "all bad" by bob."""
    with open_store(str(path), create=True) as store:
        store.add_items([ITEM, LONG])
        store.add_annotators(["ann", "bob"], "human")
        store.add_annotators(["gpt"], "judge")
        said = replace(SAID, soft=(), axis="")
        first = store.judge(said)
        store.judge(replace(said, ranks=(0, 1, 0), corrects=first))
        store.judge(replace(said, annotator="bob", ranks=(1, 2, 0)))
        store.judge(Judgement(item_id_of(LONG), "gpt", ranks=(0, 1), soft=SOFT, axis="honest"))
        store.judge(Judgement(item_id_of(LONG), "bob", verdict="all_bad", reason="no"))


def content(store: PreferenceStore) -> Any:
    """Everything but the numbers that judgements have in one store."""
    history = store.history()
    places = {kept.judgement_id: place for place, kept in enumerate(history)}
    said = [
        (kept.at, replace(kept.judgement, corrects=places.get(kept.judgement.corrects)))
        for kept in history  # type: ignore[arg-type]
    ]
    return store.items(), store.annotators(), sorted(said, key=repr)


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz", "all.parquet"])
def test_a_whole_store_goes_out_and_comes_in_without_loss(tmp_path: Path, name: str) -> None:
    filled(tmp_path / "a.db")
    with open_store(str(tmp_path / "a.db")) as one, open_store(str(tmp_path / "b.db"), create=True) as other:
        assert export(one, tmp_path / name, "store") == 2
        done = import_file(other, str(tmp_path / name))
        assert (done.items, done.judgements, done.dropped) == (2, 5, {})
        before = content(one)
        assert [by_item(part) for part in content(other)] == [by_item(part) for part in before]
        again = import_file(other, str(tmp_path / name))
        assert (again.judgements, again.dropped) == (0, {"said_before": 5})
        assert len(other.history()) == 5


def by_item(part: Any) -> Any:
    """Corrections count places in the whole history, which a file orders by item."""
    return (
        [(at, replace(said, corrects=said.corrects is not None)) for at, said in part]
        if isinstance(part, list)
        else part
    )


def records(tmp_path: Path, shape: Shape) -> list[dict[str, Any]]:
    with open_store(str(tmp_path / "a.db")) as store:
        count = export(store, tmp_path / f"{shape}.jsonl", shape)
    rows = [json.loads(line) for line in (tmp_path / f"{shape}.jsonl").read_text().splitlines()]
    assert len(rows) == count
    return rows


def test_rankings_become_the_field_s_shapes(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    sums = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    assert records(tmp_path, "rankings")[0] == {
        "prompt": sums,
        "responses": ["4", "five", "It is 4."],
        "ranks": [0, 1, 0],
        "annotator": "ann",
        "kind": "sum",
    }
    pairs = records(tmp_path, "pairs")
    # ann's correction ties two and beats one with each; bob has three pairs, the judge one; "all bad" none.
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        *(("4", "five"), ("It is 4.", "five")),
        *(("4", "five"), ("It is 4.", "4"), ("It is 4.", "five")),
        ("Oak", "A car"),
    ]
    assert records(tmp_path, "rankings")[2] | {"kind": ""} == {
        "prompt": [asdict(message) for message in LONG.prompt.messages],
        "responses": ["Oak", "A car"],
        "ranks": [0, 1],
        "soft": [{"first": 0, "second": 1, "probability": 0.83}],
        "axis": "honest",
        "annotator": "gpt",
        "kind": "",
    }
    assert records(tmp_path, "conversational")[0]["chosen"] == [{"role": "assistant", "content": "4"}]
    assert [(row["completion"], row["label"]) for row in records(tmp_path, "kto")] == [
        *(("4", True), ("five", False), ("It is 4.", True)),
        *(("five", False), ("It is 4.", True)),
        *(("Oak", True), ("A car", False)),
        *(("Oak", False), ("A car", False)),
    ]
    graded = records(tmp_path, "ultrafeedback")[0]
    assert graded["instruction"] == "Be brief.\n\n2 + 2?"
    assert [each["overall_score"] for each in graded["completions"]] == [1.0, 0.0, 1.0]
    assert graded["completions"][1]["annotations"] == {"helpful": {"Rating": "N/A"}}


def test_hh_rlhf_has_no_place_for_a_system_message(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    with pytest.raises(DataError, match="has a system message, which hh_rlhf cannot hold"):
        records(tmp_path, "hh_rlhf")


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "store"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_a_shape_says_is_said_again_after_a_round_trip(tmp_path: Path, shape: Shape, suffix: str) -> None:
    plain = replace(LONG, prompt=TextPrompt("", (Message("user", "Name a tree"),)))
    with open_store(str(tmp_path / "a.db"), create=True) as store:
        store.add_items([plain])
        store.add_annotators(["ann"], "human")
        ratings = {"helpful": (5.0, 1.5)}
        store.judge(Judgement(item_id_of(plain), "ann", ranks=(0, 1), ratings=ratings, soft=SOFT, axis="honest"))
        first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
        export(store, first, shape)
    with open_store(str(tmp_path / "b.db"), create=True) as other:
        import_file(other, str(first))
        export(other, second, shape)
    assert second.read_bytes() == first.read_bytes()


def test_ultrafeedback_comes_in_with_models_ratings_and_ties(tmp_path: Path) -> None:
    completions = [
        {
            "model": name,
            "response": f"by {name}",
            "overall_score": score,
            "annotations": {"honesty": {"Rating": rating}},
        }
        for name, score, rating in (("a", 7.5, "4"), ("b", 9, "5"), ("c", 7.5, "N/A"))
    ]
    (tmp_path / "u.jsonl").write_text(json.dumps({"instruction": "Why?", "source": "flan", "completions": completions}))
    with open_store(str(tmp_path / "a.db"), create=True) as store:
        import_file(store, str(tmp_path / "u.jsonl"))
        (item,), (kept,) = store.items().values(), store.judgements()
        assert [candidate.model for candidate in item.candidates] == ["a", "b", "c"]
        assert kept.judgement.ranks == (1, 0, 1)
        assert kept.judgement.ratings == {"honesty": (4.0, 5.0, None)}
        assert store.annotators() == {"flan": "judge"}


def test_a_bad_line_is_named_and_nothing_of_its_file_comes_in(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    (tmp_path / "bad.jsonl").write_text(f'{good}\n{{"prompt": "a", "chosen": "b"}}\n')
    with open_store(str(tmp_path / "a.db"), create=True) as store:
        with pytest.raises(DataError, match=r"bad\.jsonl:2: \"rejected\" is missing"):
            import_file(store, str(tmp_path / "bad.jsonl"))
        assert store.items() == {}
        (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b", "label": 1}\n')
        with pytest.raises(DataError, match=r'bad\.jsonl:1: "completion" must be text and "label" true or false'):
            import_file(store, str(tmp_path / "bad.jsonl"))
        with pytest.raises(ConfigError, match=r"must end in \.jsonl"):
            export(store, tmp_path / "x.csv", "pairs")


def test_a_run_trains_on_a_store(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    (tmp_path / "run.yaml").write_text(
        f"data: {{task: files, files: {{preferences: 'store:{tmp_path / 'a.db'}', heldout_fraction: 0}}}}"
    )
    rankings = build_task(load_config(tmp_path / "run.yaml").data).rankings("train")
    assert [(ranking.annotator, ranking.ranks, ranking.soft, ranking.axis) for ranking in rankings] == [
        *(("ann", (0, 1, 0), (), ""), ("bob", (1, 2, 0), (), ""), ("gpt", (0, 1), SOFT, "honest")),
        *(("ann", (0, 1), (), "helpful"), ("bob", (0, 1), (), "helpful")),  # of the two that have a rating
    ]
    assert rankings[-1].responses == ("4", "It is 4.")
    (tmp_path / "run.yaml").write_text("data: {task: files, files: {preferences: 'store:none.db'}}")
    with pytest.raises(ConfigError, match=r"data\.files\.preferences \('none\.db'\) is no file"):
        build_task(load_config(tmp_path / "run.yaml").data)
