"""Suites: the ones that are shipped, rules of their settings, questions by rule, names of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.suite import SuiteConfig, load_suite
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.records import Message, TextPrompt
from rlhf_ray.suites.examinees import Examinee, parse_examinees, require_baseline
from rlhf_ray.suites.items import Suite
from rlhf_ray.suites.rules import is_right
from tests.pipeline.fakes import FakeTask

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs/suites").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_suite_that_is_shipped_is_read_whole(path: Path) -> None:
    suite = Suite.read(load_suite(path), FakeTask())
    assert suite.name == path.stem
    assert suite.config.source == "task" or suite.prompts or suite.texts


def test_a_source_is_found_beside_its_suite(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 2)
    (tmp_path / "mine.yaml").write_text("kind: questions\nsource: mine.jsonl\nsystem: Be short.\n")
    suite = Suite.read(load_suite(tmp_path / "mine.yaml"), FakeTask())
    assert [message.content for message in suite.prompts[0].messages] == ["Be short.", "q"]
    assert len(suite.prompts) == 1  # the second is the same


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "text"}, "must name a file for kind=text"),
        ({"source": "x.jsonl"}, "must name somebody who grades"),
        ({"source": "x.jsonl", "graders": ("task",)}, "knows the task's own prompts alone"),
        ({"graders": ("exact",)}, "must be task, reward, judge or a function"),
        ({"kind": "questions", "source": "x", "graders": ("judge",)}, "belongs to kind=prompts"),
        ({"pass_at": (2,)}, "belongs to kind=questions"),
        ({"kind": "questions", "source": "x", "pass_at": (2,)}, r"pass_at \(2\) must lie between 1 and samples \(1\)"),
        ({"samples": 2, "temperature": 0.0}, "would all be the same at temperature 0"),
        ({"name": "../up"}, "files are called after it"),
        ({"max_tokens": 0}, "must be positive"),
    ],
)
def test_settings_that_cannot_work_are_an_error_at_the_door(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SuiteConfig(**settings)


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_refusals_need_both_kinds_and_ids_one_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "p", "kind": "harmful"})
    with pytest.raises(ConfigError, match="has no harmless prompt among the 1"):
        Suite.read(SuiteConfig(kind="refusals", source=source, name="r"), FakeTask())
    source = write(tmp_path / "b.jsonl", {"prompt": "p", "id": 1}, {"prompt": "q", "id": 1})
    with pytest.raises(DataError, match=r'b\.jsonl:2: another prompt has the id "1"'):
        Suite.read(SuiteConfig(source=source, graders=("judge",), name="r"), FakeTask())
    with pytest.raises(ConfigError, match=r"source .* must be a file that exists"):
        Suite.read(SuiteConfig(source="gone.jsonl", graders=("judge",), name="r"), FakeTask())


# ---------------------------------------------------------------------------------------------------------------- rules
@pytest.mark.parametrize(
    ("rule", "answer", "response", "right"),
    [
        ("exact", "Paris", "The answer is Paris.", True),
        ("exact", "Paris", "Paris, I think", False),
        ("number", "18", "9 + 9 = 18.0", True),
        ("choice", "B", "(B) because", True),
        ("contains", "CO2\ncarbon dioxide", "They take in Carbon  Dioxide, mostly.", True),
        ("contains", "Au", "Augustus", False),
        ("contains", "C++", "I like C++ best", True),
        ("contains", "", "anything", False),
    ],
)
def test_a_response_gives_an_answer_by_rule(rule: str, answer: str, response: str, right: bool) -> None:
    prompt = TextPrompt("p", (Message("user", "q"),), facts={"answers": answer})
    assert is_right(rule, prompt, response) is right


# --------------------------------------------------------------------------------------------------------------- models
def test_models_are_stages_checkpoints_and_endpoints() -> None:
    found = parse_examinees(["sft", "mine=some/checkpoint", "served=http://host:8000/v1/#big/model"])
    assert found[0] == Examinee("sft", "sft")
    assert (found[1].where, found[1].is_endpoint) == ("some/checkpoint", False)
    assert (found[2].where, found[2].model, found[2].is_endpoint) == ("http://host:8000/v1", "big/model", True)
    assert (require_baseline("", found), require_baseline("mine", found)) == ("sft", "mine")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["runs/x"], "has no name for the table; write NAME=runs/x"),
        (["sft", "sft=other"], "is named twice"),
        (["../up=x"], "must have a name of letters"),
        (["new="], "names no checkpoint"),
    ],
)
def test_a_model_without_a_name_is_an_error(models: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_examinees(models)


def test_a_baseline_must_be_one_of_the_models() -> None:
    with pytest.raises(ConfigError, match="is none of the models; choose one of sft"):
        require_baseline("ppo", parse_examinees(["sft"]))
