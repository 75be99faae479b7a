"""A task of a few records, and stages that only write down that they ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.task import Split, Task
from rlhf_ray.pipeline.artefacts import ArtefactStore
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.records import Demonstration, Message, Ranking, TextPrompt


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
