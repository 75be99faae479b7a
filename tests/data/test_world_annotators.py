"""Annotators: the same arguments give the same ranks; people differ, err, tie and like different lengths."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.world_annotators import (
    ANNOTATORS,
    choose_annotators,
    rank_responses,
    ranks_from,
    utility,
)
from rlhf_ray.data.world_demonstrations import good_response, pad, wrong_response
from rlhf_ray.data.world_prompts import build_prompts
from rlhf_ray.records import TextPrompt

CONFIG = WorldConfig(num_train_prompts=1000)
PROMPTS = [prompt for prompt in build_prompts(CONFIG, "train") if prompt.kind != "harmful"]


def good_and_wrong(prompt: TextPrompt) -> tuple[str, str]:
    return good_response(prompt, random.Random(0)), wrong_response(prompt, random.Random(0))


def test_ranks_count_from_the_best_and_near_equals_tie() -> None:
    assert ranks_from([0.1, 0.9, 0.88, 0.5], tie_margin=0.05) == (2, 0, 0, 1)
    assert ranks_from([0.5, 0.5, 0.5], tie_margin=0.0) == (0, 0, 0)
    assert ranks_from([], tie_margin=0.1) == ()


def test_ties_do_not_chain_past_the_margin() -> None:
    assert ranks_from([0.90, 0.86, 0.82], tie_margin=0.05) == (0, 0, 1)


def test_the_same_arguments_give_the_same_rankings() -> None:
    responses = ("The door is red.", "The door is blue.", "I cannot help with that.", "")
    assert rank_responses(CONFIG, PROMPTS[0], responses, 3) == rank_responses(CONFIG, PROMPTS[0], responses, 3)


def test_without_noise_everyone_prefers_the_truth() -> None:
    quiet = WorldConfig(annotator_noise=0.0)
    for prompt in PROMPTS[:200]:
        for ranking in rank_responses(quiet, prompt, good_and_wrong(prompt), 0):
            assert ranking.ranks == (0, 1)


def share_right(noise: float) -> float:
    noisy = WorldConfig(annotator_noise=noise)
    rankings = [ranking for prompt in PROMPTS for ranking in rank_responses(noisy, prompt, good_and_wrong(prompt), 0)]
    return sum(ranking.pairs == ((0, 1),) for ranking in rankings) / len(rankings)


def test_ninety_eight_in_a_hundred_prefer_right_to_wrong_and_noise_lowers_that() -> None:
    assert share_right(1.0) == pytest.approx(0.985, abs=0.01)
    assert share_right(4.0) < 0.90


def test_equal_responses_tie_whoever_ranks_them() -> None:
    for prompt in PROMPTS[:100]:
        for ranking in rank_responses(CONFIG, prompt, ("It is so.", "It is so."), 0):
            assert ranking.ranks == (0, 0)


def test_a_fifth_of_the_prompts_has_two_annotators_and_each_person_gets_work() -> None:
    chosen = [choose_annotators(CONFIG, prompt, 0) for prompt in PROMPTS]
    assert {len(people) for people in chosen} == {1, 2}
    assert sum(len(people) == 2 for people in chosen) / len(chosen) == pytest.approx(0.2, abs=0.04)
    load = Counter(person.name for people in chosen for person in people)
    assert set(load) == {person.name for person in ANNOTATORS}
    assert min(load.values()) > 120


def test_two_annotators_of_one_prompt_are_two_people() -> None:
    both = [people for prompt in PROMPTS if len(people := choose_annotators(CONFIG, prompt, 0)) == 2]
    assert all(first.name != second.name for first, second in both)


def test_people_disagree_on_length() -> None:
    prompt = next(prompt for prompt in PROMPTS if prompt.kind == "fact")
    short = good_response(prompt, random.Random(0))
    long = pad(short, random.Random(0))
    liking = {
        person.name: utility(person, prompt, long, 0.0, 0) - utility(person, prompt, short, 0.0, 0)
        for person in ANNOTATORS
    }
    assert liking["dov"] < -0.2
    assert liking["eli"] > liking["ana"] > liking["dov"]


def test_no_single_annotator_weighs_the_axes_as_gold_does() -> None:
    gold = {"helpful": 0.35, "honest": 0.25, "harmless": 0.20, "concise": 0.20}
    assert all(dict(person.weights) != gold for person in ANNOTATORS)
    assert all(sum(person.weights.values()) == pytest.approx(1.0) for person in ANNOTATORS)


def test_a_ranking_carries_prompt_responses_kind_and_name() -> None:
    [ranking, *_] = rank_responses(CONFIG, PROMPTS[0], ("a", "b"), 0)
    assert (ranking.prompt_id, ranking.messages) == (PROMPTS[0].prompt_id, PROMPTS[0].messages)
    assert (ranking.responses, ranking.kind) == (("a", "b"), PROMPTS[0].kind)
    assert ranking.annotator in {person.name for person in ANNOTATORS}
