"""A task: where a run's text comes from, who judges it, and by what it is graded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from rlhf_ray.records import Demonstration, Ranking, TextPrompt

Split: TypeAlias = Literal["train", "heldout"]


@runtime_checkable
class Task(Protocol):
    """What the stages ask of data. Every method is deterministic in the task's own seed.

    Held-out prompts share no entity (or document, or prompt) with training prompts, so that held-out is not a lookup.
    """

    @property
    def has_annotators(self) -> bool:
        """True where :meth:`rank` judges sampled responses; False where :meth:`rankings` are recorded judgements."""
        ...

    def demonstrations(self, split: Split) -> list[Demonstration]: ...

    def prompts(self, split: Split) -> list[TextPrompt]: ...

    def rankings(self, split: Split) -> list[Ranking]:
        """Recorded judgements; empty where people rank what the model samples."""
        ...

    def rank(self, prompt: TextPrompt, responses: Sequence[str], seed: int) -> list[Ranking]:
        """Let annotators rank ``responses``. The same arguments give the same ranks. The judgement never sees gold."""
        ...

    def grade(self, prompt: TextPrompt, response: str) -> Mapping[str, float]:
        """Named measures of one response; where a ground truth exists, the principal one is ``gold``, in [0, 1].

        Never shown to the reward model or to PPO.
        """
        ...

    def twins(self, prompts: Sequence[TextPrompt]) -> Mapping[str, TextPrompt]:
        """Of those ``prompts`` in which the user states a wrong opinion, the same question without it, by their id.

        Empty where a task knows of none: then nobody can tell whether an opinion turns an answer.
        """
        return {}

    def fingerprint(self) -> str:
        """Hash of everything that the task's data depends on (sources, sizes, seed), for artefact lineage."""
        ...
