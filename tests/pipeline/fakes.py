"""A task of a few records, and stages that only write down that they ran."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.task import Split, Task
from rlhf_ray.pipeline.artefacts import ArtefactStore
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.records import (
    Demonstration,
    GenerationRequest,
    Message,
    Ranking,
    Rollout,
    SamplingSettings,
    TextPrompt,
)
from rlhf_ray.roles import RolloutShard

LETTERS = tuple(range(100, 110))  # token ids of a few letters


class FakeTask(Task):
    """Recorded data that a test may replace; ``version`` is its fingerprint."""

    def __init__(self, *, has_annotators: bool = True) -> None:
        self.version = "data 1"
        self.annotated = has_annotators
        self.shown: dict[Split, list[Demonstration]] = {"train": [], "heldout": []}
        self.asked: dict[Split, list[TextPrompt]] = {"train": [], "heldout": []}
        self.judged: dict[Split, list[Ranking]] = {"train": [], "heldout": []}

    @property
    def has_annotators(self) -> bool:
        return self.annotated

    def demonstrations(self, split: Split) -> list[Demonstration]:
        return self.shown[split]

    def prompts(self, split: Split) -> list[TextPrompt]:
        return self.asked[split]

    def rankings(self, split: Split) -> list[Ranking]:
        return self.judged[split]

    def rank(self, prompt: TextPrompt, responses: Sequence[str], seed: int) -> list[Ranking]:
        """The longest response wins."""
        order = sorted(range(len(responses)), key=lambda i: (-len(responses[i]), i))
        ranks = tuple(order.index(i) for i in range(len(responses)))
        return [Ranking(prompt.prompt_id, prompt.messages, tuple(responses), ranks, "length")]

    def grade(self, prompt: TextPrompt, response: str) -> Mapping[str, float]:
        return {"gold": float(len(response) > 3)}

    def fingerprint(self) -> str:
        return self.version


class NoFleet:
    """Nothing may be started."""

    def scope(self) -> AbstractAsyncContextManager[Scope]:
        raise AssertionError("an actor would have been started")


def demonstration(number: int, text: str = "yes") -> Demonstration:
    return Demonstration(f"d{number}", (Message("user", f"q{number}"), Message("assistant", text)))


def prompt(number: int, text: str = "") -> TextPrompt:
    return TextPrompt(f"p{number}", (Message("user", text or f"q{number}"),))


def ranking(number: int, ranks: tuple[int, ...] = (0, 1)) -> Ranking:
    responses = tuple("abcdefgh"[: len(ranks)])
    return Ranking(f"p{number}", (Message("user", f"q{number}"),), responses, ranks, "someone")


def make_context(root: Path, config: RunConfig | None = None, task: Task | None = None) -> Context:
    return Context(config or RunConfig(), task or FakeTask(), NoFleet(), ArtefactStore(root), "rlhf-ray pipeline x")


# ------------------------------------------------------------------------------------------------------------- sampling
class LetterGenerator:
    """Answers a request with as many letters as its seed says; last shards first."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[int]]] = []

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        self.calls.append((settings.temperature, [r.order for r in requests]))
        for start in reversed(range(0, len(requests), 3)):
            rollouts = tuple(self._rollout(request) for request in requests[start : start + 3])
            yield RolloutShard(tuple(r.summary for r in rollouts), rollouts)

    def _rollout(self, request: GenerationRequest) -> Rollout:
        ids = np.array([*LETTERS[: 1 + request.seed % 9], 1], dtype=np.int32)
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            order=request.order,
            prompt_ids=request.prompt_ids,
            response_ids=ids,
            rollout_logprobs=np.zeros(len(ids), dtype=np.float32),
            policy_versions=np.zeros(len(ids), dtype=np.int32),
            finish_reason="stop",
            seed=request.seed,
        )


class SamplingFleet:
    """One scope, whose only role is a generator."""

    def __init__(self) -> None:
        self.generator = LetterGenerator()
        self.served: list[str] = []

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Any]:
        yield self

    async def generators(self, model_path: str) -> LetterGenerator:
        self.served.append(model_path)
        return self.generator

    async def fetch(self, ref: Any) -> Any:
        return ref
