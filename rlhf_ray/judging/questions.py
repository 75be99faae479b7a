"""What somebody is asked and what comes back: one record for comparisons, critiques and revisions.

A model reads ``messages``. The rest of a question says what it is about, for the record, and for rules that answer in a
model's place where no model of the size at hand could.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from rlhf_ray.judging.constitution import Principle
from rlhf_ray.records import Message, TextPrompt

Purpose: TypeAlias = Literal["compare", "critique", "revise"]


@dataclass(frozen=True)
class Question:
    """``responses`` are in the order in which they are shown: two to compare, one to criticise or to revise."""

    purpose: Purpose
    messages: tuple[Message, ...]
    prompt: TextPrompt
    responses: tuple[str, ...]
    principle: Principle | None = None
    vote: int = 0  # the same question asked again has another number


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    read: int = 0
    written: int = 0

    @property
    def tokens(self) -> int:
        return self.read + self.written

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.read + other.read, self.written + other.written)


@dataclass(frozen=True)
class Answer:
    """``masses`` are the probabilities of the verdicts as its first token; empty where text was asked for."""

    text: str
    usage: Usage
    masses: Mapping[str, float] = field(default_factory=dict)


class Respondent(Protocol):
    """Whoever answers: a model that the fleet serves, an endpoint, a rule."""

    @property
    def identity(self) -> Mapping[str, object]:
        """All that decides its answers beside the question: the answer to an equal question may be used again."""
        ...

    def bound(self, question: Question) -> Usage | None:
        """What answering can cost at most; None for a question that it has no room for."""
        ...

    def answers(self, questions: Sequence[Question]) -> AsyncIterator[tuple[int, Answer]]:
        """Yield (place of the question, answer) as answers come in, each question once."""
        ...
