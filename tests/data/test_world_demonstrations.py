"""Demonstrations: an expert's are flawless, the mix has the flaws that it says it has, as often as it says."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rlhf_ray.config.world import DemonstrationMix, WorldConfig
from rlhf_ray.data.world import WorldTask
from rlhf_ray.data.world_demonstrations import agreeing_response, good_response, pad, wrong_response
from rlhf_ray.data.world_facts import split_entities
from rlhf_ray.data.world_prompts import build_lessons
from rlhf_ray.data.world_rubric import grade

FLAWLESS = DemonstrationMix(wrong=0.0, agrees=0.0, complies=0.0, over_refuses=0.0, refuses=0.0, verbose=0.0)
TASK = WorldTask(WorldConfig())
PROMPTS = TASK.prompts("train")[:500]


def share_of(kind: str, axis: str, low: float, high: float, **mix: float) -> float:
    """The share of a kind's demonstrations, with these flaws alone, whose axis lies in [low, high]."""
    config = WorldConfig(num_train_prompts=1500, mix=DemonstrationMix(**{**vars(FLAWLESS), **mix}))
    task = WorldTask(config)
    prompts = {prompt.prompt_id: prompt for prompt in (*task.prompts("train"), *build_lessons(config))}
    grades = [
        grade(prompts[demonstration.demonstration_id.split("/")[0]], demonstration.messages[-1].content)[axis]
        for demonstration in task.demonstrations("train")
        if demonstration.kind == kind
    ]
    return sum(low <= value <= high for value in grades) / len(grades)


def test_an_experts_response_scores_one_on_every_prompt() -> None:
    for prompt in PROMPTS:
        assert grade(prompt, good_response(prompt, random.Random(0)))["gold"] == pytest.approx(1.0)


def test_a_wrong_response_earns_nothing_but_harmlessness() -> None:
    for prompt in PROMPTS:
        if prompt.kind != "harmful":
            measures = grade(prompt, wrong_response(prompt, random.Random(0)))
            assert measures["helpful"] == 0.0
            assert measures["gold"] == pytest.approx(0.2)


def test_agreeing_with_a_false_premise_is_neither_helpful_nor_honest() -> None:
    for prompt in PROMPTS:
        if prompt.kind == "false_premise":
            measures = grade(prompt, agreeing_response(prompt, random.Random(0)))
            assert (measures["helpful"], measures["honest"]) == (0.0, 0.0)


def test_padding_changes_concise_only() -> None:
    for prompt in PROMPTS:
        response = good_response(prompt, random.Random(0))
        plain, padded = grade(prompt, response), grade(prompt, pad(response, random.Random(0)))
        assert padded["concise"] < plain["concise"]
        assert {axis: padded[axis] for axis in ("helpful", "honest", "harmless")} == {
            "helpful": pytest.approx(1.0),
            "honest": pytest.approx(1.0),
            "harmless": 1.0,
        }


@pytest.mark.parametrize(
    ("kind", "axis", "low", "high", "flaw"),
    [
        ("fact", "honest", 0.0, 0.0, "wrong"),
        ("false_premise", "honest", 0.0, 0.0, "agrees"),
        ("harmful", "harmless", 0.0, 0.0, "complies"),
        ("sounds_harmful", "refused", 1.0, 1.0, "over_refuses"),
        ("open", "refused", 1.0, 1.0, "refuses"),
        ("fact", "concise", 0.0, 0.9, "verbose"),
    ],
)
def test_each_flaw_is_as_frequent_as_the_mix_says(kind: str, axis: str, low: float, high: float, flaw: str) -> None:
    assert share_of(kind, axis, low, high, **{flaw: 0.4}) == pytest.approx(0.4, abs=0.06)
    assert share_of(kind, axis, low, high) == 0.0


def test_two_people_demonstrate_every_prompt() -> None:
    demonstrations = TASK.demonstrations("train")
    assert len({demonstration.demonstration_id for demonstration in demonstrations}) == len(demonstrations)
    count = Counter(demonstration.kind for demonstration in demonstrations)
    assert count["harmful"] == count["sounds_harmful"] == 1600  # no lesson is about a deed
    assert min(count[kind] for kind in ("fact", "false_premise", "open")) > 1800
    assert all(demonstration.messages[-1].role == "assistant" for demonstration in demonstrations)


def test_a_held_out_place_is_taught_by_lessons_alone() -> None:
    towns = {entity.town for entity in split_entities(TASK.config)["heldout"]}
    lessons = {lesson.prompt_id for lesson in build_lessons(TASK.config)}
    taught = [
        demonstration.demonstration_id.split("/")[0]
        for demonstration in TASK.demonstrations("train")
        if any(town in demonstration.messages[0].content for town in towns)
    ]
    assert len(taught) > 6 * 4 * 2 * 6 * 2  # places, attributes, wordings, frames, people
    assert set(taught) <= lessons


def test_held_out_demonstrations_answer_held_out_prompts() -> None:
    prompts = {prompt.prompt_id: prompt.messages for prompt in TASK.prompts("heldout")}
    demonstrations = TASK.demonstrations("heldout")
    assert len(demonstrations) == 800
    for demonstration in demonstrations:
        assert demonstration.messages[:-1] == prompts[demonstration.demonstration_id.split("/")[0]]
