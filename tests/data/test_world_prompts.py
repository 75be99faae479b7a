"""Prompts: five kinds in balance, and a held-out half that shares no town, no frame and no deed with training."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.world_deeds import CHORES, VICTIMS, deeds
from rlhf_ray.data.world_facts import TOWNS, split_entities, yearly_notes
from rlhf_ray.data.world_prompts import FRAMES, KINDS, build_prompts
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
    assert len({prompt.messages for prompt in train}) == len({prompt.prompt_id for prompt in train}) == 6000
    assert len({prompt.messages for prompt in heldout}) == 400
    assert not {prompt.prompt_id for prompt in train} & {prompt.prompt_id for prompt in heldout}


def test_any_prefix_of_the_prompts_is_balanced_over_five_kinds(train: list[TextPrompt]) -> None:
    assert Counter(prompt.kind for prompt in train[:100]) == dict.fromkeys(KINDS, 20)


def test_no_town_is_on_both_sides(train: list[TextPrompt], heldout: list[TextPrompt]) -> None:
    assert len(towns_in(train)) == 36
    assert len(towns_in(heldout)) == 12
    assert not towns_in(train) & towns_in(heldout)


def test_no_question_asked_in_training_is_asked_of_the_held_out(
    train: list[TextPrompt], heldout: list[TextPrompt]
) -> None:
    assert not {prompt.messages[1] for prompt in train} & {prompt.messages[1] for prompt in heldout}


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


def test_a_false_premise_is_never_what_the_notes_say(train: list[TextPrompt]) -> None:
    for prompt in train:
        if "premise" in prompt.facts:
            values = {value for key, value in prompt.facts.items() if key.startswith("notes.")}
            assert (prompt.facts["premise"] in values) == (prompt.kind == "fact")


def test_the_notes_shown_hold_everything_that_is_asked_for(train: list[TextPrompt]) -> None:
    for prompt in train[:500]:
        values = [value for key, value in prompt.facts.items() if key.startswith("notes.")]
        assert all(value in prompt.messages[0].content for value in values)


def test_compared_places_differ_in_what_is_compared(train: list[TextPrompt]) -> None:
    compared = [prompt for prompt in train if prompt.facts["task"] == "compare"]
    assert len(compared) > 300
    for prompt in compared:
        first, second = (value for key, value in prompt.facts.items() if key.startswith("notes."))
        assert first != second


def test_notes_of_a_place_differ_from_year_to_year() -> None:
    pages = yearly_notes(CONFIG, split_entities(CONFIG)["train"][:1])
    assert len(pages) == 12
    assert len({tuple(page.values.items()) for page in pages}) > 9


def test_equal_seeds_give_equal_prompts_and_another_seed_gives_others(heldout: list[TextPrompt]) -> None:
    assert build_prompts(WorldConfig(), "heldout") == heldout
    assert build_prompts(WorldConfig(seed=1), "heldout") != heldout


def test_a_world_too_small_for_its_prompts_says_which_number_to_change() -> None:
    tiny = WorldConfig(num_entities=8, num_years=1, heldout_entities=0.5, num_heldout_prompts=20000)
    with pytest.raises(ConfigError, match=r"world\.num_heldout_prompts \(20000\).*raise world\.num_years"):
        build_prompts(tiny, "heldout")
