"""Asking: what was answered before is not asked again, and nothing is asked that the budget might not cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_ray.judging.budget import Budget, BudgetError
from rlhf_ray.judging.ledger import Ledger, key_of
from rlhf_ray.judging.questions import Answer, Question, Respondent, Usage


@dataclass
class Counts:
    """What this process has asked."""

    asked: int = 0
    found: int = 0  # answered before
    too_long: int = 0
    usage: Usage = field(default_factory=Usage)


class Asker:
    """One respondent, one ledger, one budget."""

    def __init__(self, respondent: Respondent, ledger: Ledger, budget: Budget, *, batch_size: int) -> None:
        self.respondent = respondent
        self.ledger = ledger
        self.budget = budget
        self.counts = Counts()
        self.stopped: BudgetError | None = None
        self._batch_size = batch_size
        self._identity = respondent.identity

    async def ask(self, questions: Sequence[Question]) -> list[Answer | None]:
        """The answer to each question; None for one that is too long, and, once ``stopped`` is set, for the rest.

        The caller uses what was answered and then raises what ``stopped`` holds.
        """
        keys = [key_of(question, self._identity) for question in questions]
        missing = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if self.ledger.get(key) is None  # by key: equal questions are asked once
        }
        self.counts.found += sum(key not in missing for key in keys)
        bounds = {
            key: bound for key, question in missing.items() if (bound := self.respondent.bound(question)) is not None
        }
        self.counts.too_long += len(missing) - len(bounds)
        await self._ask_missing({key: missing[key] for key in bounds}, bounds)
        return [self.ledger.get(key) for key in keys]

    async def _ask_missing(self, missing: Mapping[str, Question], bounds: Mapping[str, Usage]) -> None:
        waiting = list(missing)
        while waiting and self.stopped is None:
            batch = waiting[: self._batch_size]
            batch = batch[: self.budget.affordable([bounds[key] for key in batch])]
            if not batch:
                self.stopped = self.budget.error(len(waiting))
                return
            async for place, answer in self.respondent.answers([missing[key] for key in batch]):
                self._keep(batch[place], missing[batch[place]], answer)
            self.ledger.flush()
            waiting = waiting[len(batch) :]

    def _keep(self, key: str, question: Question, answer: Answer) -> None:
        self.ledger.append(key, question, answer)
        self.budget = self.budget.plus(answer.usage)
        self.counts.asked += 1
        self.counts.usage += answer.usage
