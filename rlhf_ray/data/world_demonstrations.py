"""Demonstrations of mixed quality, as people write them: good, verbose, wrong, agreeable, complying, too careful."""

from __future__ import annotations

import random
from collections.abc import Mapping

from rlhf_ray.config.world import DemonstrationMix, WorldConfig
from rlhf_ray.data.world_deeds import CHORES, TACTICS
from rlhf_ray.data.world_facts import ATTRIBUTE_OF
from rlhf_ray.data.world_prompts import sentence_case
from rlhf_ray.records import Demonstration, Message, TextPrompt

REFUSALS = ("I cannot help with that.", "I will not help with that.")
REASON = "It would do harm."
OPENERS = ("Thank you for the question.", "I am glad to be of help.", "Let me think about that.")
CLOSERS = ("I hope that this is of help to you.", "Please ask again if you want to know more.", "Have a nice day.")


def truth_of(facts: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """(place, attribute) -> value: everything that is so of the places in the prompt."""
    keys = [key.split(".") for key in facts if key.startswith("truth.")]
    return {(place, name): facts[f"truth.{place}.{name}"] for _, place, name in keys}


def asked_truth(facts: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """The part of the truth that the prompt asks for, in the order in which it asks."""
    truth = truth_of(facts)
    wanted = facts["attributes"].split(",") if "attributes" in facts else []
    return {key: value for name in wanted for key, value in truth.items() if key[1] == name}


def answer(facts: Mapping[str, str], values: Mapping[tuple[str, str], str], draw: random.Random) -> str:
    """State ``values`` in the manner that the task asks for; they need not be true."""
    task = facts["task"]
    sentences = [ATTRIBUTE_OF[name].sentence.format(v=value) for (_, name), value in values.items()]
    phrases = [ATTRIBUTE_OF[name].phrase.format(v=value) for (_, name), value in values.items()]
    places = [place for place, _ in values]
    if task == "compare":
        return f"The {places[0]} {phrases[0]}, the {places[1]} {phrases[1]}."
    if task == "describe":
        return f"The {places[0]} {', '.join(phrases[:-1])} and {phrases[-1]}."
    if task == "list":
        return " ".join(sentences)
    [(key, value)] = values.items()
    if task == "confirm":
        word = "Yes" if value == facts["premise"] else "No"
        return f"{word}, {sentences[0][:1].lower()}{sentences[0][1:]}"
    return sentences[0] if draw.random() < 0.5 else f"The {key[0]} {phrases[0]}."


def good_response(prompt: TextPrompt, draw: random.Random) -> str:
    """What an expert writes: right, short, and a refusal only where one is due."""
    if prompt.kind == "harmful":
        return f"{draw.choice(REFUSALS)} {REASON}"
    if prompt.kind == "sounds_harmful":
        return CHORES[prompt.facts["target"]].advice
    return answer(prompt.facts, asked_truth(prompt.facts), draw)


def wrong_response(prompt: TextPrompt, draw: random.Random) -> str:
    """A fluent mistake: every value asked for is another one of its kind, or the advice is on another chore."""
    if prompt.kind == "sounds_harmful":
        return CHORES[draw.choice([target for target in CHORES if target != prompt.facts["target"]])].advice
    values = {
        (place, name): draw.choice([other for other in ATTRIBUTE_OF[name].values if other != value])
        for (place, name), value in asked_truth(prompt.facts).items()
    }
    return answer(prompt.facts, values, draw)


def agreeing_response(prompt: TextPrompt, draw: random.Random) -> str:
    [key] = asked_truth(prompt.facts)
    return answer(prompt.facts, {key: prompt.facts["premise"]}, draw)


def pad(response: str, draw: random.Random) -> str:
    """Wrap a response in courtesies that say nothing."""
    return f"{draw.choice(OPENERS)} {response} {' '.join(draw.sample(CLOSERS, draw.choice((1, 1, 2))))}"


def flawed_response(prompt: TextPrompt, mix: DemonstrationMix, draw: random.Random) -> str:
    """Draw one flaw, or none, by the shares that apply to the prompt's kind."""
    point = draw.random()
    if prompt.kind == "harmful":
        return TACTICS[prompt.facts["verb"]] if point < mix.complies else good_response(prompt, draw)
    if (point := point - mix.wrong) < 0:
        return wrong_response(prompt, draw)
    if (point := point - mix.refuses) < 0:
        return draw.choice(REFUSALS)
    if prompt.kind == "false_premise" and point < mix.agrees:
        return agreeing_response(prompt, draw)
    if prompt.kind == "sounds_harmful" and point < mix.over_refuses:
        return f"{draw.choice(REFUSALS)} {REASON}"
    return good_response(prompt, draw)


def demonstrate(config: WorldConfig, prompts: list[TextPrompt]) -> list[Demonstration]:
    """Let ``demonstrations_per_prompt`` people each write a response to every prompt."""
    written = []
    for prompt in prompts:
        for writer in range(config.demonstrations_per_prompt):
            draw = random.Random(f"world/{config.seed}/demonstration/{prompt.prompt_id}/{writer}")
            response = flawed_response(prompt, config.mix, draw)
            if draw.random() < config.mix.verbose:
                response = pad(response, draw)
            messages = (*prompt.messages, Message("assistant", sentence_case(response)))
            written.append(Demonstration(f"{prompt.prompt_id}/{writer}", messages, prompt.kind))
    return written
