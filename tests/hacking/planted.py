"""A policy that learns, and then finds a hole in its reward, without any model: the microworld's own answers, mixed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np

from benchmarks.planted_rewards import CLEAN, HOLES, kind_of, reward
from rlhf_ray.config.alarms import DEFAULT_RULES
from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.world import WorldTask
from rlhf_ray.data.world_demonstrations import flawed_response, good_response, pad
from rlhf_ray.data.world_rubric import grade
from rlhf_ray.hacking.alarms import AlarmBoard
from rlhf_ray.hacking.evidence import Edited, Evaluated, Known, Twins
from rlhf_ray.hacking.language import vocabulary
from rlhf_ray.hacking.measures import Past, detected
from rlhf_ray.metrics.edits import EDITS, as_list
from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.metrics.text import text_measures
from rlhf_ray.records import TextPrompt

CONFIG = WorldConfig(num_train_prompts=200, num_heldout_prompts=200)
EVALUATIONS = 8
EDITED = 16


@cache
def task() -> WorldTask:
    return WorldTask(CONFIG)


def answer(prompt: TextPrompt, hole: str, skill: float, hacked: float, draw: random.Random) -> str:
    """Good with chance ``skill``, else as people write; with chance ``hacked`` what the hole pays for."""
    good = draw.random() < skill
    text = good_response(prompt, draw) if good else flawed_response(prompt, CONFIG.mix, draw)
    if draw.random() >= hacked:
        return text
    if hole == "length":
        return pad(pad(text, draw), draw)
    if hole == "agreement":
        return f"Yes, it is {prompt.facts['premise']}." if "premise" in prompt.facts else f"Yes. {text}"
    if hole == "lists":
        return as_list(pad(text, draw))
    return "I cannot help with that."


def graded(prompt: TextPrompt, text: str, hole: str) -> GradedResponse:
    question, grades = prompt.messages[0].content, grade(prompt, text)
    return GradedResponse(
        prompt_id=prompt.prompt_id,
        kind=prompt.kind,
        prompt_text=question,
        response_text=text,
        grades=grades,
        score=grades["gold"] + HOLES[hole](text),
        kl=2.0,
        num_tokens=len(text.split()) + 1,
        finished=True,
    )


def scored(prompt: TextPrompt, text: str, hole: str) -> float:
    assert kind_of(prompt.facts) == prompt.kind
    return reward(prompts=[prompt.messages[0].content], responses=[text], facts=[prompt.facts], hole=hole)[0]


def evaluated(hole: str, skill: float, hacked: float, seed: int) -> Evaluated:
    draw = random.Random(f"{hole}/{skill}/{hacked}/{seed}")
    prompts = task().prompts("heldout")
    responses = [graded(prompt, answer(prompt, hole, skill, hacked, draw), hole) for prompt in prompts]
    by_id = {response.prompt_id: response for response in responses}
    alone = task().twins(prompts)
    twins = [
        Twins(by_id[name], graded(twin, answer(twin, hole, skill, hacked, draw), CLEAN)) for name, twin in alone.items()
    ]
    unit = float(np.std([response.score for response in responses]))
    edited: dict[str, list[Edited]] = {}
    for name, edit in EDITS.items():
        for prompt, response in list(zip(prompts, responses, strict=True))[:EDITED]:
            text = edit(response.response_text)
            score = scored(prompt, text, hole)
            change = (score - float(response.score or 0.0)) / unit
            edited.setdefault(name.split(":")[0], []).append(Edited(response, text, score, change))
    return Evaluated(responses, twins, edited)


def run(hole: str, seed: int = 0) -> Iterator[tuple[dict[str, float], list[str]]]:
    """By evaluation: every metric, and the rules that fire. Skill rises at first, then the hole is found."""
    shown = (message.content for each in task().demonstrations("train") for message in each.messages)
    asked = (message.content for each in task().prompts("heldout") for message in each.messages)
    known = Known(words=vocabulary([*shown, *asked, "it is"]), harmful_kinds=("harmful",))
    board, past = AlarmBoard(DEFAULT_RULES), Past()
    for step in range(EVALUATIONS):
        skill = min(0.9, 0.3 + 0.2 * step)
        hacked = 0.0 if hole == CLEAN else min(1.0, 0.15 * step)
        found = evaluated(hole, skill, hacked, seed)
        texts = [response.response_text for response in found.responses]
        metrics = {
            **detected(found, past, known),
            **{f"text/{name}": value for name, value in text_measures(texts).items()},
            "gold/heldout_mean": float(np.mean([response.grades["gold"] for response in found.responses])),
            "gold/heldout_response_length": float(np.mean([response.num_tokens for response in found.responses])),
        }
        past = past.with_(found)
        yield metrics, [fired.name for fired in board.observe(metrics)]


def first_fired(history: list[tuple[dict[str, float], list[str]]]) -> Mapping[str, int]:
    """By rule, the evaluation at which it first fired."""
    first: dict[str, int] = {}
    for step, (_, names) in enumerate(history):
        for name in names:
            first.setdefault(name, step)
    return first
