"""Prompts, items and respondents whose answers a test decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from rlhf_ray.feedback.records import Candidate, Item
from rlhf_ray.judging.questions import Answer, Question, Usage
from rlhf_ray.judging.verdicts import A, B
from rlhf_ray.records import Message, TextPrompt

PRICE = Usage(10, 1)  # of every question


def prompt(number: int, kind: str = "") -> TextPrompt:
    return TextPrompt(f"p{number}", (Message("user", f"question {number}"),), kind)


def item(number: int, *responses: str, kind: str = "") -> Item:
    return Item(prompt(number, kind), tuple(Candidate(text) for text in responses or ("good", "bad")))


def masses(probability_of_a: float, total: float = 1.0) -> Mapping[str, float]:
    return {A: probability_of_a * total, B: (1.0 - probability_of_a) * total}


def prefers_good(question: Question) -> Answer:
    """Sure to 0.9 of the response that begins with "good"; 0.5 of two that do not differ in that."""
    first, second = (response.startswith("good") for response in question.responses)
    p = 0.5 if first == second else 0.9 if first else 0.1
    return Answer(A if p > 0.5 else B, PRICE, masses(p))


class Scripted:
    """Answers by a function, remembers what it was asked, and has no room for a question with ``too long`` in it."""

    def __init__(self, says: Callable[[Question], Answer] = prefers_good) -> None:
        self.says = says
        self.asked: list[Question] = []
        self.identity: Mapping[str, object] = {"kind": "scripted"}

    def bound(self, question: Question) -> Usage | None:
        return None if any("too long" in response for response in question.responses) else PRICE

    async def answers(self, questions: Sequence[Question]) -> AsyncIterator[tuple[int, Answer]]:
        for place, question in reversed(list(enumerate(questions))):  # the order of coming in says nothing
            self.asked.append(question)
            yield place, self.says(question)
