"""What may be spent, in tokens and in money. The limits are never passed: what might cost more is not asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf_ray.config.judge import BudgetConfig
from rlhf_ray.errors import RlhfError
from rlhf_ray.judging.questions import Usage


class BudgetError(RlhfError):
    """The budget does not reach for what is still to be asked. All that was answered is kept."""


@dataclass(frozen=True)
class Budget:
    """Limits of a whole run, over all its attempts, and what has been used of them."""

    config: BudgetConfig
    spent: Usage = field(default_factory=Usage)

    def plus(self, usage: Usage) -> Budget:
        return Budget(self.config, self.spent + usage)

    def affordable(self, bounds: Sequence[Usage]) -> int:
        """How many of the next questions can be asked, in order, if each costs as much as it can."""
        total = self.spent
        for count, bound in enumerate(bounds):
            total += bound
            if self._passes(total):
                return count
        return len(bounds)

    def money(self, usage: Usage) -> float:
        prices = self.config
        return (usage.read * prices.price_read + usage.written * prices.price_written) / 1e6

    def error(self, unanswered: int) -> BudgetError:
        return BudgetError(
            f"judge.budget is used up: {self.spent.tokens} tokens, {self.money(self.spent):.4f} in money; {unanswered} "
            "questions were not asked. All answers and the judgements that follow from them are kept; raise "
            "judge.budget.max_tokens or judge.budget.max_money and give the same command to go on"
        )

    def _passes(self, usage: Usage) -> bool:
        tokens, money = self.config.max_tokens, self.config.max_money
        return (tokens is not None and usage.tokens > tokens) or (money is not None and self.money(usage) > money)
