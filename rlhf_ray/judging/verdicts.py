"""From answers to verdicts: both orders of a pair are asked, and what depends on the order cancels or becomes a tie.

All probabilities are that the first of a pair is the better one, whatever the order in which it was shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Literal, TypeAlias

from rlhf_ray.judging.questions import Answer

A, B = "A", "B"
Disagreement: TypeAlias = Literal["tie", "vote"]
Outcome: TypeAlias = Literal[-1, 0, 1]  # the first is better, a tie, the second is better
VALUES: Mapping[str, float] = {"a": 1.0, "b": 0.0, "tie": 0.5, "c": 0.5, "both": 0.5, "neither": 0.5, "equal": 0.5}


def read_answer(answer: Answer, pattern: re.Pattern[str], min_mass: float) -> float | None:
    """The probability that the response shown as A is the better one; None where the answer says nothing of it.

    With masses P(A) / (P(A) + P(B)), unless the two verdicts together have less than ``min_mass``: such an answer is
    about to be something else. In text the pattern's last match counts: a judge reasons first.
    """
    if answer.masses:
        total = answer.masses[A] + answer.masses[B]
        return answer.masses[A] / total if total >= max(min_mass, 1e-12) else None
    found = list(pattern.finditer(answer.text))
    return VALUES.get(found[-1][1].lower()) if found and found[-1][1] else None


@dataclass(frozen=True)
class Opinion:
    """What was read of one pair, by order of showing, None where an answer could not be read."""

    forward: tuple[float | None, ...]  # the first was shown as A
    backward: tuple[float | None, ...]  # the first was shown as B

    @classmethod
    def of(cls, readings: Sequence[float | None]) -> Opinion:
        """From probabilities of A, forward and backward in turn, as the questions are asked."""
        turned = tuple(None if p is None else 1.0 - p for p in readings[1::2])
        return cls(tuple(readings[::2]), turned)

    @property
    def by_order(self) -> tuple[float, float] | None:
        """The mean of each order; None unless both were answered readably."""
        sides = [[p for p in side if p is not None] for side in (self.forward, self.backward)]
        return (fmean(sides[0]), fmean(sides[1])) if all(sides) else None

    @property
    def probability(self) -> float | None:
        """The mean over both orders, each with half the weight: a soft label free of a constant lean to A or B."""
        return None if self.by_order is None else fmean(self.by_order)

    @property
    def is_consistent(self) -> bool:
        """Whether both orders name the same winner, or both none."""
        if self.by_order is None:
            return False
        forward, backward = self.by_order
        return (forward > 0.5) == (backward > 0.5) and (forward < 0.5) == (backward < 0.5)

    def outcome(self, on_disagreement: Disagreement) -> Outcome | None:
        """The verdict; None where it cannot be read. Orders that disagree tie, or all answers vote by their mean."""
        if self.probability is None:
            return None
        if on_disagreement == "tie" and not self.is_consistent:
            return 0
        return -1 if self.probability > 0.5 else 1 if self.probability < 0.5 else 0


def ranks_of(outcomes: Mapping[tuple[int, int], Outcome], num_candidates: int) -> tuple[int, ...]:
    """Ranks from the outcomes of all pairs, by points as in a tournament: 1 a win, a half a tie (Copeland)."""
    points = [0.0] * num_candidates
    for i, j in combinations(range(num_candidates), 2):
        points[i] += (1 - outcomes[i, j]) / 2
        points[j] += (1 + outcomes[i, j]) / 2
    better = sorted(set(points), reverse=True)
    return tuple(better.index(own) for own in points)
