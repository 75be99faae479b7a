"""Prompts: five kinds in balance, and a held-out half that shares no town, no frame and no deed with training."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.world import WorldTask
from rlhf_ray.data.world_deeds import CHORES, VICTIMS, deeds
from rlhf_ray.data.world_demonstrations import asked_truth
from rlhf_ray.data.world_facts import ATTRIBUTES, TOWNS, split_entities
from rlhf_ray.data.world_prompts import FRAMES, KINDS, build_lessons, build_prompts
from rlhf_ray.errors import ConfigError
from rlhf_ray.records import TextPrompt

CONFIG = WorldConfig()


@pytest.fixture(scope="module")
def train() -> list[TextPrompt]:
    return build_prompts(CONFIG, "train")


@pytest.fixture(scope="module")
def heldout() -> list[TextPrompt]:
    return build_prompts(CONFIG, "heldout")


def towns_in(prompts: list[TextPrompt]) -> set[str]:
    told = " ".join(message.content for prompt in prompts for message in prompt.messages)
    return {town for town in TOWNS if re.search(rf"\b{town}\b", told)}


def test_there_are_several_thousand_distinct_prompts(train: list[TextPrompt], heldout: list[TextPrompt]) -> None:
    assert len({prompt.messages for prompt in train}) == len({prompt.prompt_id for prompt in train}) == 4000
    assert len({prompt.messages for prompt in heldout}) == 400
    assert not {prompt.prompt_id for prompt in train} & {prompt.prompt_id for prompt in heldout}


def test_any_prefix_of_the_prompts_is_balanced_over_five_kinds(train: list[TextPrompt]) -> None:
    assert Counter(prompt.kind for prompt in train[:100]) == dict.fromkeys(KINDS, 20)


def test_no_town_is_on_both_sides(train: list[TextPrompt], heldout: list[TextPrompt]) -> None:
    assert len(towns_in(train)) == 18
    assert len(towns_in(heldout)) == 6
    assert not towns_in(train) & towns_in(heldout)


def test_no_question_asked_in_training_is_asked_of_the_held_out(
    train: list[TextPrompt], heldout: list[TextPrompt]
) -> None:
    assert not {prompt.messages[0] for prompt in train} & {prompt.messages[0] for prompt in heldout}


def test_no_frame_is_on_both_sides() -> None:
    assert all(not set(frames["train"]) & set(frames["heldout"]) for frames in FRAMES.values())


@pytest.mark.parametrize("harmful", [True, False])
def test_held_out_deeds_are_new_pairs_of_known_words(harmful: bool) -> None:
    train, heldout = deeds("train", harmful=harmful), deeds("heldout", harmful=harmful)
    assert len(heldout) == 10
    assert not set(train) & set(heldout)
    assert {deed.target for deed in heldout} <= {deed.target for deed in train}
    every_verb = {deed.verb for deed in train} | {deed.verb for deed in deeds("train", harmful=not harmful)}
    assert {deed.verb for deed in heldout} <= every_verb


def test_harmful_and_harmless_deeds_share_their_verbs_but_no_object() -> None:
    harmless = {verb for chore in CHORES.values() for verb in chore.verbs}
    assert {verb for verbs in VICTIMS.values() for verb in verbs} == harmless
    assert not set(CHORES) & set(VICTIMS)


def test_a_false_premise_is_never_true(train: list[TextPrompt]) -> None:
    for prompt in train:
        if "premise" in prompt.facts:
            values = {value for key, value in prompt.facts.items() if key.startswith("truth.")}
            assert (prompt.facts["premise"] in values) == (prompt.kind == "fact")


def test_lessons_ask_every_plain_question_about_every_place_and_never_of_a_deed() -> None:
    lessons = build_lessons(CONFIG)
    asked = [lesson for lesson in lessons if lesson.facts["task"] == "ask"]
    assert len({lesson.prompt_id for lesson in asked}) == len(asked) == 24 * 4 * 2 * 6
    assert len(towns_in(asked)) == 24
    assert {lesson.kind for lesson in lessons} == {"fact", "false_premise", "open"}


def test_premises_and_open_tasks_among_the_lessons_are_about_held_out_places(heldout: list[TextPrompt]) -> None:
    others = [lesson for lesson in build_lessons(CONFIG) if lesson.facts["task"] != "ask"]
    assert 400 < len(others) <= 800
    assert towns_in(others) == towns_in(heldout)


def test_no_lesson_is_a_held_out_prompt(heldout: list[TextPrompt]) -> None:
    assert not {lesson.prompt_id for lesson in build_lessons(CONFIG)} & {prompt.prompt_id for prompt in heldout}


def test_compared_places_differ_in_what_is_compared(train: list[TextPrompt]) -> None:
    compared = [prompt for prompt in train if prompt.facts["task"] == "compare"]
    assert len(compared) > 300
    for prompt in compared:
        asked = f".{prompt.facts['attributes']}"
        first, second = (value for key, value in prompt.facts.items() if key.endswith(asked))
        assert first != second


def test_every_place_has_a_value_of_every_attribute() -> None:
    for entity in (*split_entities(CONFIG)["train"], *split_entities(CONFIG)["heldout"]):
        assert all(entity.values[attribute.name] in attribute.values for attribute in ATTRIBUTES)


def test_equal_seeds_give_equal_prompts_and_another_seed_gives_others(heldout: list[TextPrompt]) -> None:
    assert build_prompts(WorldConfig(), "heldout") == heldout
    assert build_prompts(WorldConfig(seed=1), "heldout") != heldout


def test_a_world_too_small_for_its_prompts_says_which_number_to_change() -> None:
    tiny = WorldConfig(num_entities=8, heldout_entities=0.5, num_heldout_prompts=5000)
    with pytest.raises(ConfigError, match=r"world\.num_heldout_prompts \(5000\).*raise world\.num_entities"):
        build_prompts(tiny, "heldout")


def test_a_false_premise_has_a_twin_that_asks_for_the_same_without_it() -> None:
    task = WorldTask(WorldConfig(num_train_prompts=20, num_heldout_prompts=40))
    prompts = task.prompts("heldout")
    twins = task.twins(prompts)
    assert twins.keys() == {prompt.prompt_id for prompt in prompts if prompt.kind == "false_premise"}
    for prompt in prompts:
        if twin := twins.get(prompt.prompt_id):
            assert (twin.kind, twin.facts["task"]) == ("fact", "ask")
            assert prompt.facts["premise"].lower() not in twin.messages[0].content.lower().split()
            assert asked_truth(twin.facts) == asked_truth(prompt.facts)
    assert task.twins(prompts) == twins
