"""People's own files: every form that is read, every mistake that is named, one split for all kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from rlhf_ray.data.answers import gives_answer
from rlhf_ray.data.files import FilesConfig, FilesTask
from rlhf_ray.data.jsonl import JsonObject, write_jsonl
from rlhf_ray.data.recorded import prompt_id_of
from rlhf_ray.data.task import Split, Task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.records import Message, Ranking, TextPrompt

Build: TypeAlias = Callable[..., FilesTask]

SPLITS: tuple[Split, ...] = ("train", "heldout")
ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
NO = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
Q = (Message("user", "q"),)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Write the given rows of each kind, by keyword, and read them as a task; nothing is held out unless asked."""

    def from_rows(fraction: float = 0.0, seed: int = 0, **kinds: Sequence[JsonObject]) -> FilesTask:
        paths = {kind: str(tmp_path / f"{kind}.jsonl") for kind in kinds}
        for kind, rows in kinds.items():
            write_jsonl(Path(paths[kind]), rows)
        return FilesTask(FilesConfig(**paths, heldout_fraction=fraction, seed=seed))  # type: ignore[arg-type]

    return from_rows


def fails(build: Build, kind: str, row: JsonObject, *parts: str) -> None:
    """The row stands on line 2, after a good one."""
    good: dict[str, JsonObject] = {
        "demonstrations": {"prompt": "x", "response": "y"},
        "prompts": {"prompt": "x"},
        "preferences": {"prompt": "x", "chosen": "y", "rejected": "z"},
    }
    with pytest.raises(DataError) as caught:
        build(**{kind: [good[kind], row]})
    assert f"{kind}.jsonl:2: " in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


# ------------------------------------------------------------------------------------------------------- what is read
@pytest.mark.parametrize(
    "row", [{"messages": [ASK, SAY]}, {"prompt": "q", "response": "a"}, {"prompt": [ASK], "response": "a"}]
)
def test_both_forms_of_a_demonstration_are_one(build: Build, row: JsonObject) -> None:
    (shown,) = build(demonstrations=[row | {"id": 7, "kind": "k"}]).demonstrations("train")
    assert (shown.demonstration_id, shown.kind) == ("7", "k")
    assert shown.messages == (*Q, Message("assistant", "a"))


def test_a_response_keeps_its_white_space(build: Build) -> None:
    (shown,) = build(demonstrations=[{"prompt": "It is", "response": " fun.\n"}]).demonstrations("train")
    assert shown.messages[-1].content == " fun.\n"


@pytest.mark.parametrize("prompt", ["q", [ASK], "\n\nHuman: q\n\nAssistant:", "\n\nHuman: q"])
def test_every_form_of_a_prompt_is_one(build: Build, prompt: object) -> None:
    assert build(prompts=[{"prompt": prompt}]).prompts("train") == [TextPrompt(prompt_id_of(Q), Q)]


def test_a_prompt_keeps_its_id_kind_and_answer(build: Build) -> None:
    (prompt,) = build(prompts=[{"prompt": [SYSTEM, ASK], "id": "one", "kind": "sums", "answer": 72}]).prompts("train")
    assert prompt == TextPrompt("one", (Message("system", "s"), *Q), "sums", {"answer": "72"})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [ASK], "chosen": [SAY], "rejected": [NO]},
        {"prompt": "q", "chosen": [SAY], "rejected": "b"},
        {"chosen": [ASK, SAY], "rejected": [ASK, NO]},
        {"prompt": "q", "chosen": [ASK, SAY], "rejected": [ASK, NO]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1]},
    ],
)
def test_every_form_of_a_pair_is_one_ranking(build: Build, row: JsonObject) -> None:
    rankings = build(preferences=[row]).rankings("train")
    assert rankings == [Ranking(prompt_id_of(Q), Q, ("a", "b"), (0, 1), "unknown")]


def test_k_responses_keep_their_ranks_ties_and_annotator(build: Build) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "annotator": "ann", "kind": "k"}
    (ranking,) = build(preferences=[row]).rankings("train")
    assert (ranking.ranks, ranking.annotator, ranking.kind) == ((2, 1, 2), "ann", "k")
    assert ranking.pairs == ((1, 0), (1, 2))


def test_what_is_of_no_use_is_dropped_and_counted_over_all_files(build: Build) -> None:
    pairs = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a "},
        {"prompt": "q", "chosen": "", "rejected": "a"},
        {"prompt": "q", "responses": ["a", ""], "ranks": [0, 1]},
        {"chosen": [ASK, SAY], "rejected": [SYSTEM, ASK, NO]},
    ]
    shown = [{"prompt": "q", "response": "a"}, {"prompt": "q", "response": "\n"}]
    task = build(preferences=pairs, demonstrations=shown, prompts=[{"prompt": "q"}, {"prompt": "q"}])
    assert task.dropped == {"same_answer": 1, "empty_answer": 3, "differing_prompts": 1, "repeated_prompt": 1}
    assert (len(task.rankings("train")), len(task.demonstrations("train")), len(task.prompts("train"))) == (1, 1, 1)


def test_prompts_are_those_of_preferences_then_of_demonstrations(build: Build) -> None:
    shown = [{"prompt": "from demonstrations", "response": "a"}] * 2
    pairs = [{"prompt": "from preferences", "chosen": "a", "rejected": "b"}] * 2
    assert [p.messages[0].content for p in build(demonstrations=shown).prompts("train")] == ["from demonstrations"]
    both = build(demonstrations=shown, preferences=pairs)
    assert [p.messages[0].content for p in both.prompts("train")] == ["from preferences"]


# -------------------------------------------------------------------------------------------- kinds of files, sources
def test_json_and_parquet_hold_the_same_records_as_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = [{"prompt": "q", "kind": "k"}, {"prompt": "r", "id": "two"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    write_jsonl(tmp_path / "a.jsonl.gz", rows)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(
            rows, pyarrow.schema([(name, pyarrow.string()) for name in ("prompt", "kind", "id")])
        ),
        tmp_path / "a.parquet",
    )
    tasks = [
        FilesTask(FilesConfig(prompts=str(tmp_path / name), heldout_fraction=0))
        for name in ("a.json", "a.jsonl.gz", "a.parquet")
    ]
    assert [prompt.prompt_id for prompt in tasks[0].prompts("train")] == [prompt_id_of(Q), "two"]
    assert tasks[0].prompts("train") == tasks[1].prompts("train") == tasks[2].prompts("train")


def test_a_malformed_element_of_a_json_array_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n  {"prompt": "q"},\n  {\n    "promt": "q"\n  }\n]')
    with pytest.raises(DataError, match=r'a\.json:3: "prompt" is missing among \[\'promt\'\]'):
        FilesTask(FilesConfig(prompts=str(path)))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"prompt": "q"}', "json:1: a .json file must hold one array"),
        ('[{"prompt": "q"},\n{"prompt": }]', "json:2: not JSON"),
        ('[{"prompt": "q"}', "json:1: not JSON"),
        ('[{"prompt": "q"} {"prompt": "r"}]', "json:1: not JSON"),
        ('[{"prompt": "q"}]\n[', "json:2: not JSON"),
        ('[{"prompt": "q"},\n7]', "json:2: must be an object like"),
        ("[]", "no usable record (it is empty)"),
    ],
)
def test_a_broken_json_array_is_named(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        FilesTask(FilesConfig(prompts=str(path)))
    assert what in str(caught.value)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file"):
        FilesTask(FilesConfig(prompts=str(tmp_path / "a.parquet")))


def test_a_hub_dataset_is_loaded_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[tuple[object, ...]] = []

    def load(name: str, subset: str | None, split: str) -> list[dict[str, object]]:
        calls.append((name, subset, split))
        return [{"prompt": f"{split} 1", "kind": None}, {"prompt": f"{split} 2", "kind": "k"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "q"}])
    FilesTask(FilesConfig(prompts=str(tmp_path / "a.jsonl")))
    assert calls == []
    task = FilesTask(FilesConfig(prompts="hub:own-er/na.me", heldout_prompts="hub:owner/name/main:test[:10%]"))
    assert calls == [("own-er/na.me", None, "train"), ("owner/name", "main", "test[:10%]")]
    assert [prompt.messages[0].content for prompt in task.prompts("heldout")] == ["test[:10%] 1", "test[:10%] 2"]


def test_a_hub_failure_is_named_with_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, subset: str | None, split: str) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match=r"hub:owner/name: the hub dataset cannot be loaded \(ConnectionError: offline\)"
    ):
        FilesTask(FilesConfig(prompts="hub:owner/name"))


# ------------------------------------------------------------------------------------------------ mistakes at the door
@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"messages": []}, ['"messages" must be a list of messages', '{"prompt": "...", "response": "..."}']),
        ({"messages": [SAY]}, ["must be a prompt and, last, the assistant's answer"]),
        ({"messages": [ASK]}, ["must be a prompt and, last, the assistant's answer"]),
        ({"messages": [ASK, {"role": "bot", "content": "a"}]}, ["message 2 of \"messages\" has the role 'bot'"]),
        ({"messages": [ASK, {"role": "assistant"}]}, ['message 2 of "messages" has no text as content']),
        ({"messages": [ASK, "a"]}, ['message 2 of "messages" must be an object, found str']),
        ({"prompt": "q"}, ["\"response\" is missing among ['prompt']"]),
        ({"prompt": "q", "response": 3}, ['"response" must be text, found int']),
        ({"prompt": "q", "response": "a", "kind": ["k"]}, ['"kind" must be text or a number, not list']),
    ],
)
def test_a_malformed_demonstration_is_named(build: Build, row: JsonObject, parts: list[str]) -> None:
    fails(build, "demonstrations", row, *parts)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"text": "q"}, ["\"prompt\" is missing among ['text']", '{"prompt": "..."}']),
        ({"prompt": " "}, ['"prompt" is empty']),
        ({"prompt": [ASK, SAY]}, ['"prompt" must end with a message of the user, not of the assistant']),
    ],
)
def test_a_malformed_prompt_is_named(build: Build, row: JsonObject, parts: list[str]) -> None:
    fails(build, "prompts", row, *parts)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "q", "chosen": "a"}, ["\"rejected\" is missing among ['chosen', 'prompt']"]),
        ({"chosen": "a", "rejected": "b"}, ["\"prompt\" is missing among ['chosen', 'rejected']"]),
        ({"chosen": [SAY], "rejected": [NO]}, ['"prompt" is missing']),
        (
            {"chosen": [ASK], "rejected": [ASK, NO]},
            ['"chosen" must end with a message of the assistant, not of the user'],
        ),
        (
            {"prompt": "p", "chosen": [ASK, SAY], "rejected": [ASK, NO]},
            ['"chosen" repeats another prompt than "prompt"'],
        ),
        ({"prompt": "q", "responses": ["a"], "ranks": [0]}, ["at least two texts"]),
        ({"prompt": "q", "responses": ["a", 1], "ranks": [0, 1]}, ["at least two texts"]),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [0]}, ['"ranks" ([0]) must be a list of 2 whole numbers']),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [True, False]}, ["must be a list of 2 whole numbers"]),
        (
            {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1], "soft": [{"first": 0, "second": 2}]},
            ["\"soft\" ([{'first': 0, 'second': 2}]) must be a list of {\"first\": 0"],
        ),
        (
            {
                "prompt": "q",
                "responses": ["a", "b"],
                "ranks": [0, 1],
                "soft": [{"first": 0, "second": 2, "probability": 1}],
            },
            ["places below 2"],
        ),
        ({"prompt": "q", "responses": ["a", "b"]}, ['"ranks" (None) must be a list of 2 whole numbers']),
    ],
)
def test_a_malformed_preference_is_named(build: Build, row: JsonObject, parts: list[str]) -> None:
    fails(build, "preferences", row, *parts)


def test_two_prompts_with_one_id_are_an_error(build: Build) -> None:
    with pytest.raises(DataError, match='two prompts have the id "one"'):
        build(prompts=[{"prompt": "q", "id": "one"}, {"prompt": "r", "id": "one"}])


def test_a_file_of_nothing_but_useless_records_is_an_error(build: Build) -> None:
    with pytest.raises(DataError, match=r"preferences\.jsonl: no usable record \(\{'same_answer': 2\} dropped\)"):
        build(preferences=[{"prompt": "q", "chosen": "a", "rejected": "a"}] * 2)


def test_an_empty_file_is_an_error(build: Build) -> None:
    with pytest.raises(DataError, match=r"prompts\.jsonl: no usable record \(it is empty\)"):
        build(prompts=[])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data\.files \(''\) needs at least one of demonstrations, prompts and preferences"),
        ({"prompts": "none.jsonl"}, r"data\.files\.prompts \('none\.jsonl'\) must be a file that exists"),
        ({"prompts": "a.txt"}, r"data\.files\.prompts \('a\.txt'\) must end in one of \.jsonl"),
        ({"preferences": "hub:name"}, r"data\.files\.preferences \('hub:name'\) is no hub dataset"),
        (
            {"prompts": "hub:a/b", "heldout_prompts": "none.json"},
            r"data\.files\.heldout_prompts \('none\.json'\) must be a file",
        ),
        (
            {"prompts": "a.json", "heldout_preferences": "b.json"},
            r"data\.files\.heldout_preferences .* needs data\.files\.preferences too",
        ),
        (
            {"prompts": "a.json", "heldout_fraction": -0.1},
            r"data\.files\.heldout_fraction \(-0\.1\) must be in \[0, 1\)",
        ),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FilesTask(FilesConfig(**settings))


# ---------------------------------------------------------------------------------------------------------- the split
def test_a_prompt_held_out_in_one_kind_is_in_no_kinds_training_part(build: Build) -> None:
    task = build(
        fraction=0.25,
        demonstrations=[{"prompt": f"question {n}", "response": "a"} for n in range(200)],
        preferences=[{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(100, 300)],
        prompts=[{"prompt": f"question {n}", "id": n} for n in range(300)],
    )
    train, heldout = (
        [
            {shown.messages[:-1] for shown in task.demonstrations(split)},
            {p.messages for p in task.prompts(split)},
            {r.messages for r in task.rankings(split)},
        ]
        for split in SPLITS
    )
    assert not set.union(*train) & set.union(*heldout)
    assert [len(a) + len(b) for a, b in zip(train, heldout, strict=True)] == [200, 300, 200]
    assert 55 <= len(heldout[1]) <= 95  # 75 +- 2.7 standard deviations
    assert task.dropped == {}


def test_a_heldout_source_replaces_the_fraction_and_empties_training_of_its_prompts(build: Build) -> None:
    task = build(
        fraction=0.5,
        prompts=[{"prompt": f"question {n}"} for n in range(40)],
        heldout_prompts=[{"prompt": "question 3"}, {"prompt": "unseen"}],
    )
    assert [prompt.messages[0].content for prompt in task.prompts("heldout")] == ["question 3", "unseen"]
    assert len(task.prompts("train")) == 39
    assert task.dropped == {"prompt_is_held_out": 1}


def test_a_heldout_source_of_one_kind_holds_out_in_the_others(build: Build) -> None:
    pairs = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(10)]
    task = build(prompts=[{"prompt": "other"}], heldout_prompts=[{"prompt": "question 3"}], preferences=pairs)
    assert [ranking.messages[0].content for ranking in task.rankings("heldout")] == ["question 3"]
    assert len(task.rankings("train")) == 9


def test_nothing_left_to_train_on_is_an_error(build: Build) -> None:
    with pytest.raises(
        DataError, match=r"data\.files\.prompts: all 1 prompts are held out; lower data\.files\.heldout_fraction"
    ):
        build(prompts=[{"prompt": "q"}], heldout_prompts=[{"prompt": "q"}])


def test_the_seed_decides_what_is_held_out_and_the_fingerprint(build: Build) -> None:
    rows = [{"prompt": f"question {n}"} for n in range(40)]
    one, same, other = (build(prompts=rows, fraction=0.5, seed=seed) for seed in (0, 0, 1))
    assert one.prompts("heldout") == same.prompts("heldout") != other.prompts("heldout")
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


# ------------------------------------------------------------------------------------------------------------ grading
def test_gold_exists_where_the_prompt_has_an_answer(build: Build) -> None:
    task = build(prompts=[{"prompt": "6 * 12?", "answer": "72"}, {"prompt": "q"}])
    with_answer, without = task.prompts("train")
    assert isinstance(task, Task)
    assert task.grade(with_answer, "It is 72.") == {"words": 3.0, "refused": 0.0, "gold": 1.0}
    assert task.grade(with_answer, "It is 71.")["gold"] == 0.0
    assert task.grade(without, "I cannot answer that.") == {"words": 4.0, "refused": 1.0}
    with pytest.raises(DataError, match="recorded judgements only"):
        task.rank(without, ["a", "b"], seed=0)


@pytest.mark.parametrize(
    ("response", "answer", "given"),
    [
        ("48/2 = 24, and 48 + 24 = 72\n#### 72", "72", True),
        ("So 1,200.50 in all.", "1200.5", True),
        ("72 of 100", "72", False),
        ("-3", "3", False),
        ("no number", "3", False),
        ("Let me think.\n\n  **Paris**.\n", "paris", True),
        ("Paris or Rome", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_an_answer_is_what_the_response_ends_on(response: str, answer: str, given: bool) -> None:
    assert gives_answer(response, answer) is given
