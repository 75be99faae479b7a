"""HH-RLHF: turns, rows that are no comparison, the split by prompt, and the facts that we state of the real files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_ray.data.hh_rlhf import HhRlhfConfig, HhRlhfTask, parse_conversation
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.data.task import Split, Task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.records import Message, Ranking, TextPrompt

SPLITS: tuple[Split, ...] = ("train", "heldout")
PROMPT = TextPrompt("p", (Message("user", "?"),))


def row(prompt: str, chosen: str, rejected: str) -> dict[str, object]:
    start = f"\n\nHuman: {prompt}\n\nAssistant: "
    return {"chosen": start + chosen, "rejected": start + rejected}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., HhRlhfTask]:
    def from_rows(
        *rows: dict[str, object], name: str = "helpful.jsonl", fraction: float = 0.0, seed: int = 0
    ) -> HhRlhfTask:
        write_jsonl(tmp_path / name, rows)
        return HhRlhfTask(HhRlhfConfig(str(tmp_path), (name,), seed=seed, heldout_fraction=fraction))

    return from_rows


def test_turns_are_split_at_markers_after_an_empty_line() -> None:
    text = "\n\nHuman: Say \nHuman: hi\n\nAssistant: Hi.\n\nThen:\n\nHuman:again\n\nAssistant:  "
    assert parse_conversation(text, "here") == (
        Message("user", "Say \nHuman: hi"),
        Message("assistant", "Hi.\n\nThen:"),
        Message("user", "again"),
        Message("assistant", ""),
    )


@pytest.mark.parametrize("text", ["", "Hello", "Hello\n\nHuman: hi", "\n\nAssistant: hi\n\nHuman: hi"])
def test_text_that_does_not_begin_with_a_human_turn_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match=r'^here: the text does not begin with "Human:"'):
        parse_conversation(text, "here")


def test_a_row_is_a_ranking_and_its_chosen_answer_a_demonstration(build: Callable[..., HhRlhfTask]) -> None:
    task = build(row("a?\n\nAssistant: b\n\nHuman: c?", "yes", "no"))
    (ranking,) = task.rankings("train")
    prompt = (Message("user", "a?"), Message("assistant", "b"), Message("user", "c?"))
    assert ranking == Ranking(ranking.prompt_id, prompt, ("yes", "no"), (0, 1), "crowdworker", kind="helpful")
    assert task.prompts("train") == [TextPrompt(ranking.prompt_id, prompt, "helpful")]
    (shown,) = task.demonstrations("train")
    assert (shown.demonstration_id, shown.messages) == ("helpful.jsonl:1", (*prompt, Message("assistant", "yes")))


def test_rows_that_are_no_comparison_are_dropped_and_counted(build: Callable[..., HhRlhfTask]) -> None:
    odd = {"chosen": row("a", "x", "")["chosen"], "rejected": row("b", "x", "")["chosen"]}
    nested = row("a", "x", "y\n\nAssistant: z")  # the last marker decides: the prompts differ
    unanswered = dict.fromkeys(("chosen", "rejected"), "\n\nHuman: a\n\nAssistant: b\n\nHuman: c")
    doubled = row("a\n\nHuman: b", "x", "y")
    task = build(
        row("a", "x", "y"), odd, nested, row("a", "", "y"), row("a", "x", " "), row("a", "x", "x "), unanswered, doubled
    )
    assert task.dropped == {"differing_prompts": 2, "empty_answer": 3, "same_answer": 1, "roles_do_not_alternate": 1}
    assert len(task.rankings("train")) == 1


def test_rows_that_share_a_prompt_stay_on_one_side(build: Callable[..., HhRlhfTask]) -> None:
    rows = [row(f"question {number // 3}", f"yes {number}", f"no {number}") for number in range(600)]
    task = build(*rows, fraction=0.25)
    sides = [{ranking.messages for ranking in task.rankings(split)} for split in SPLITS]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 200
    assert 35 <= len(sides[1]) <= 65  # 50 +- 2.4 standard deviations
    assert [len(task.prompts(split)) for split in SPLITS] == [len(side) for side in sides]
    assert sum(len(task.rankings(split)) for split in SPLITS) == 600
    assert {prompt.messages for prompt in build(*rows, fraction=0.25, seed=1).prompts("heldout")} != sides[1]


def test_the_split_does_not_depend_on_the_order_of_rows(build: Callable[..., HhRlhfTask]) -> None:
    rows = [row(f"question {number}", "yes", "no") for number in range(50)]
    forward, backward = build(*rows, fraction=0.3), build(*rows[::-1], fraction=0.3)
    assert forward.prompts("heldout") == backward.prompts("heldout")[::-1]
    assert forward.fingerprint() != backward.fingerprint()
    assert forward.fingerprint() == build(*rows, fraction=0.3).fingerprint()


def test_grading_measures_and_knows_no_gold(build: Callable[..., HhRlhfTask]) -> None:
    task = build(row("a", "x", "y"))
    assert isinstance(task, Task)
    assert task.grade(PROMPT, "I'm sorry, but I can't help with that.") == {"words": 8.0, "refused": 1.0}
    assert task.grade(PROMPT, "Gladly.") == {"words": 1.0, "refused": 0.0}
    assert not task.has_annotators
    with pytest.raises(DataError, match="recorded judgements only"):
        task.rank(PROMPT, ["a", "b"], seed=0)


def test_a_row_without_rejected_is_named(build: Callable[..., HhRlhfTask]) -> None:
    with pytest.raises(DataError, match=r'helpful\.jsonl:2: "rejected" must be the whole conversation as text'):
        build(row("a", "x", "y"), {"chosen": "\n\nHuman: a\n\nAssistant: b"})


def test_a_file_without_a_usable_row_is_an_error(build: Callable[..., HhRlhfTask]) -> None:
    with pytest.raises(DataError, match=r"helpful\.jsonl: no usable row \(\{'same_answer': 1\} dropped\)"):
        build(row("a", "x", "x"))


def test_a_missing_file_is_named_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.hh_rlhf\.path \('.*none\.jsonl'\) must be a file that exists"):
        HhRlhfTask(HhRlhfConfig(str(tmp_path), ("none.jsonl",)))


def test_no_files_and_a_fraction_of_one_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"data\.hh_rlhf\.files"):
        HhRlhfConfig("here", ())
    with pytest.raises(ConfigError, match=r"data\.hh_rlhf\.heldout_fraction \(1\.0\) must be in \[0, 1\)"):
        HhRlhfConfig("here", ("a.jsonl",), heldout_fraction=1.0)


# ------------------------------------------------------------------------------------------- facts about the real data
FACTS = {  # file: (dropped by reason, different prompts, share of pairs in which the longer answer was chosen)
    "helpful_single_turn_a": ({"differing_prompts": 10, "empty_answer": 2, "same_answer": 1}, 3_984, 0.621),
    "helpful_single_turn_b": ({"differing_prompts": 9, "empty_answer": 6}, 3_975, 0.634),
    "harmless_single_turn": ({"differing_prompts": 6, "empty_answer": 4}, 3_905, 0.412),
}


@pytest.mark.parametrize("name", FACTS)
def test_the_real_files_have_4000_rows_and_these_facts(data_folder: Path, name: str) -> None:
    dropped, num_prompts, longer_wins = FACTS[name]
    task = HhRlhfTask(HhRlhfConfig(str(data_folder / "hh_rlhf"), (f"{name}.jsonl.gz",)))
    rankings = [ranking for split in SPLITS for ranking in task.rankings(split)]
    assert task.dropped == dropped
    assert len(rankings) == 4_000 - sum(dropped.values())
    assert sum(len(task.prompts(split)) for split in SPLITS) == num_prompts
    lengths = [tuple(len(response) for response in ranking.responses) for ranking in rankings]
    decided = [chosen > rejected for chosen, rejected in lengths if chosen != rejected]
    assert sum(decided) / len(decided) == pytest.approx(longer_wins, abs=0.001)


def test_both_helpful_files_share_one_split(data_folder: Path) -> None:
    files = ("helpful_single_turn_a.jsonl.gz", "helpful_single_turn_b.jsonl.gz")
    task = HhRlhfTask(HhRlhfConfig(str(data_folder / "hh_rlhf"), files))
    train, heldout = ({prompt.prompt_id for prompt in task.prompts(split)} for split in SPLITS)
    assert not train & heldout
    assert len(task.rankings("train")) + len(task.rankings("heldout")) == 7_972
    assert len(heldout) / (len(train) + len(heldout)) == pytest.approx(0.1, abs=0.01)
