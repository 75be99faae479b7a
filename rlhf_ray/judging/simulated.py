"""A judge, critic and reviser for worlds whose ground truth is known: right but for a stated rate of errors.

It compares by the grade that a principle's axis names, or by ``gold``, and takes the worse response for the better one
with a probability that it draws for each pair and tells: it is calibrated, and its errors are known. A pair gets the
same error in both orders.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TypeAlias

from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.questions import Answer, Question, Usage
from rlhf_ray.judging.verdicts import A, B
from rlhf_ray.records import TextPrompt

Grade: TypeAlias = Callable[[TextPrompt, str], Mapping[str, float]]
Expert: TypeAlias = Callable[[TextPrompt, random.Random], str]
WHOLE = "gold"
FLAWLESS = "Nothing to criticise."
LONGEST = 64  # words of a critique or of an expert
SAME = 1e-9  # grades closer than this are equal


class Simulated:
    """Answers from grades. Without an ``expert``, who writes a flawless response, it cannot revise."""

    def __init__(
        self,
        grade: Grade,
        *,
        error_rate: float = 0.0,
        position_bias: float = 0.0,
        seed: int = 0,
        in_text: bool = False,
        expert: Expert | None = None,
    ) -> None:
        self._grade = grade
        self._error_rate = error_rate
        self._position_bias = position_bias
        self._seed = seed
        self._in_text = in_text
        self._expert = expert

    @property
    def identity(self) -> Mapping[str, object]:
        return {
            "kind": "simulated",
            "error_rate": self._error_rate,
            "position_bias": self._position_bias,
            "seed": self._seed,
            "in_text": self._in_text,
        }

    def bound(self, question: Question) -> Usage:
        """Words stand for tokens."""
        longest = max(LONGEST, *(len(response.split()) for response in question.responses))
        return Usage(_words(question), 1 if question.purpose == "compare" else longest)

    async def answers(self, questions: Sequence[Question]) -> AsyncIterator[tuple[int, Answer]]:
        of_purpose = {"compare": self._compare, "critique": self._criticise, "revise": self._revise}
        for place, question in enumerate(questions):
            yield place, of_purpose[question.purpose](question)

    # ------------------------------------------------------------------------------------------------------ comparison
    def _compare(self, question: Question) -> Answer:
        usage = Usage(_words(question), 1)
        sure = self.probability_of_a(question)
        said = A if sure > 0.5 else B if sure < 0.5 else "tie"
        return Answer(said, usage) if self._in_text else Answer(said, usage, {A: sure, B: 1.0 - sure})

    def probability_of_a(self, question: Question) -> float:
        """How likely it is, to this judge, that the response shown first is the better one."""
        shown = self._draw(question, "shown", question.vote, *question.responses)
        if shown.random() < self._position_bias:
            return 1.0 - self._error_rate if self._error_rate < 0.5 else 0.5 + SAME
        first, second = (self.value(question, response) for response in question.responses)
        if abs(first - second) < SAME:
            return 0.5
        pair = self._draw(question, "pair", *sorted(question.responses))
        error = pair.uniform(*error_range(self._error_rate))
        errs = pair.random() < error
        return 1.0 - error if (first > second) != errs else error

    def value(self, question: Question, response: str) -> float:
        """The grade that the question is about. Raises ConfigError for an axis that is not graded."""
        grades = self._grade(question.prompt, response)
        axis = question.principle.axis if question.principle and question.principle.axis else WHOLE
        if axis not in grades:
            rule = f"names an axis ({axis}) that this data does not grade"
            raise ConfigError("judge.constitution", axis, rule, f"choose one of {', '.join(sorted(grades))}")
        return grades[axis]

    # -------------------------------------------------------------------------------------------------------- revision
    def _criticise(self, question: Question) -> Answer:
        text = FLAWLESS
        if self._sees_flaw(question):
            assert question.principle is not None
            text = f"By {question.principle.name} the response falls short ({question.principle.axis or WHOLE})."
        return Answer(text, Usage(_words(question), len(text.split())))

    def _revise(self, question: Question) -> Answer:
        text = question.responses[0]
        if self._sees_flaw(question):
            assert self._expert is not None
            text = self._expert(question.prompt, self._draw(question, "revision", text))
        return Answer(text, Usage(_words(question), len(text.split())))

    def _sees_flaw(self, question: Question) -> bool:
        """Whether the response lacks anything by the principle; an error overlooks it."""
        overlooks = self._draw(question, "flaw", *question.responses).random() < self._error_rate
        return self.value(question, question.responses[0]) < 1.0 - SAME and not overlooks

    def _draw(self, question: Question, *about: object) -> random.Random:
        principle = question.principle.name if question.principle else ""
        return random.Random("/".join(map(str, (self._seed, question.prompt.prompt_id, principle, *about))))


def error_range(rate: float) -> tuple[float, float]:
    """Bounds of a pair's own error, uniform with mean ``rate`` and never above a half: pairs differ in difficulty."""
    half = min(rate, 0.5 - rate)
    return rate - half, rate + half


def _words(question: Question) -> int:
    return sum(len(message.content.split()) for message in question.messages)
