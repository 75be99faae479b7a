"""Simulated people who rank responses: each with weights, a taste for length, lapses of attention and noise.

They see the rubric's axes the way a reader sees quality; its weighted sum, gold, never enters a judgement.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.world_rubric import grade
from rlhf_ray.records import Ranking, TextPrompt


@dataclass(frozen=True)
class Annotator:
    """One person. A utility of 1 is about what separates a flawless response from a useless one."""

    name: str
    weights: Mapping[str, float]  # of the axes
    length_taste: float  # utility per 20 words
    noise: float  # standard deviation of what chance adds to a utility
    lapse: float  # chance of taking an untrue or useless response at its word
    tie_margin: float  # utilities closer than this are a tie


ANNOTATORS: tuple[Annotator, ...] = (
    Annotator("ana", {"helpful": 0.4, "honest": 0.2, "harmless": 0.2, "concise": 0.2}, 0.00, 0.05, 0.03, 0.10),
    Annotator("bo", {"helpful": 0.5, "honest": 0.1, "harmless": 0.2, "concise": 0.2}, 0.08, 0.08, 0.05, 0.12),
    Annotator("cleo", {"helpful": 0.2, "honest": 0.4, "harmless": 0.2, "concise": 0.2}, 0.05, 0.06, 0.04, 0.10),
    Annotator("dov", {"helpful": 0.4, "honest": 0.2, "harmless": 0.1, "concise": 0.3}, -0.05, 0.06, 0.04, 0.10),
    Annotator("eli", {"helpful": 0.3, "honest": 0.3, "harmless": 0.3, "concise": 0.1}, 0.12, 0.09, 0.07, 0.14),
)


def utility(annotator: Annotator, prompt: TextPrompt, response: str, noise_scale: float, seed: int) -> float:
    """What one response is worth to one person. Equal responses are worth the same: people notice a repetition."""
    draw = random.Random(f"world/{annotator.name}/{prompt.prompt_id}/{seed}/{response}")
    measures = grade(prompt, response)
    seen = {axis: measures[axis] for axis in annotator.weights}
    if draw.random() < annotator.lapse * noise_scale and response.strip():
        seen |= {"helpful": 1.0, "honest": 1.0}
    quality = sum(annotator.weights[axis] * seen[axis] for axis in seen)
    liking = annotator.length_taste * len(response.split()) / 20.0
    return quality + liking + draw.gauss(0.0, annotator.noise * noise_scale)


def ranks_from(utilities: Sequence[float], tie_margin: float) -> tuple[int, ...]:
    """Rank 0 is the best; a response within ``tie_margin`` of the best of its rank shares that rank."""
    order = sorted(range(len(utilities)), key=lambda index: -utilities[index])
    ranks = [0] * len(utilities)
    rank = 0
    leader = order[0] if order else 0
    for index in order:
        if utilities[leader] - utilities[index] > tie_margin:
            rank += 1
            leader = index
        ranks[index] = rank
    return tuple(ranks)


def choose_annotators(config: WorldConfig, prompt: TextPrompt, seed: int) -> tuple[Annotator, ...]:
    """One person for most prompts, two for ``annotator_overlap`` of them, so that agreement can be measured."""
    draw = random.Random(f"world/{config.seed}/annotators/{prompt.prompt_id}/{seed}")
    return tuple(draw.sample(ANNOTATORS, 2 if draw.random() < config.annotator_overlap else 1))


def rank_responses(config: WorldConfig, prompt: TextPrompt, responses: Sequence[str], seed: int) -> list[Ranking]:
    """Let the prompt's annotators rank ``responses``: one Ranking each, the same for the same arguments."""
    rankings = []
    for annotator in choose_annotators(config, prompt, seed):
        utilities = [utility(annotator, prompt, response, config.annotator_noise, seed) for response in responses]
        rankings.append(
            Ranking(
                prompt_id=prompt.prompt_id,
                messages=prompt.messages,
                responses=tuple(responses),
                ranks=ranks_from(utilities, annotator.tie_margin),
                annotator=annotator.name,
                kind=prompt.kind,
            )
        )
    return rankings
