"""The microworld as a task: invented places, mixed demonstrations, a rubric in code and people who disagree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property

from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.task import Split, Task
from rlhf_ray.data.world_annotators import rank_responses
from rlhf_ray.data.world_demonstrations import demonstrate
from rlhf_ray.data.world_prompts import build_lessons, build_prompts, question_alone
from rlhf_ray.data.world_rubric import grade
from rlhf_ray.records import Demonstration, Ranking, TextPrompt

WORLD_VERSION = 4  # raise it whenever a change of code changes the data


class WorldTask(Task):
    """Learnable from scratch by a model of a million parameters. Satisfies :class:`rlhf_ray.data.task.Task`."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config

    @property
    def has_annotators(self) -> bool:
        return True

    @cached_property
    def _prompts(self) -> Mapping[Split, list[TextPrompt]]:
        return {"train": build_prompts(self.config, "train"), "heldout": build_prompts(self.config, "heldout")}

    def prompts(self, split: Split) -> list[TextPrompt]:
        """Distinct prompts; the five kinds take turns, so that any prefix is balanced."""
        return list(self._prompts[split])

    def demonstrations(self, split: Split) -> list[Demonstration]:
        """``demonstrations_per_prompt`` responses, of mixed quality, to every prompt of the split; in training also to
        the lessons, which teach what is true of every place.
        """
        prompts = {prompt.prompt_id: prompt for prompt in self._prompts[split]}
        if split == "train":
            prompts |= {lesson.prompt_id: lesson for lesson in build_lessons(self.config)}
        return demonstrate(self.config, list(prompts.values()))

    def rankings(self, split: Split) -> list[Ranking]:
        return []

    def rank(self, prompt: TextPrompt, responses: Sequence[str], seed: int) -> list[Ranking]:
        return rank_responses(self.config, prompt, responses, seed)

    def grade(self, prompt: TextPrompt, response: str) -> Mapping[str, float]:
        """``gold``, ``helpful``, ``honest``, ``harmless`` and ``concise`` in [0, 1]; ``refused`` is 0 or 1."""
        return grade(prompt, response)

    def twins(self, prompts: Sequence[TextPrompt]) -> dict[str, TextPrompt]:
        """For every false premise the plain question, in a held-out frame."""
        return {
            prompt.prompt_id: question_alone(self.config, prompt)
            for prompt in prompts
            if prompt.kind == "false_premise"
        }

    def fingerprint(self) -> str:
        content = json.dumps({"task": "world", "version": WORLD_VERSION, **asdict(self.config)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()
