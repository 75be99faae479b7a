"""Several sources' scores of the same rollouts become one: a weighted sum, or the reasons why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Graded, Score

NO_SCORE = "gave no score"


def combine(
    grades: Mapping[str, Sequence[Graded]], *, weights: Mapping[str, float], lengths: Sequence[int]
) -> tuple[Score, ...]:
    """The weighted sum of the sources' scores, one Score a rollout; ``lengths`` are those of the responses in tokens.

    A rollout that any source cannot score has failed as a whole: a sum without one of its terms would be another
    reward. Raises RlhfError where a source answers for more or fewer rollouts than there are.
    """
    for name, answers in grades.items():
        if len(answers) != len(lengths):
            raise RlhfError(f"reward source {name!r} answered for {len(answers)} of {len(lengths)} rollouts")
    return tuple(
        _score({name: answers[row] for name, answers in grades.items()}, weights, length)
        for row, length in enumerate(lengths)
    )


def _score(grades: Mapping[str, Graded], weights: Mapping[str, float], length: int) -> Score:
    reasons = {name: reason for name, graded in grades.items() if (reason := why_failed(graded, length))}
    parts = {
        name: float(graded.score) for name, graded in grades.items() if name not in reasons and graded.score is not None
    }
    if reasons:
        return Score(math.nan, parts, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    steps: dict[int, float] = {}
    for name, graded in grades.items():
        for index, value in graded.step_rewards:
            steps[index] = steps.get(index, 0.0) + weights[name] * value
    total = sum(weights[name] * part for name, part in parts.items())
    inner = {f"{name}.{part}": value for name, graded in grades.items() for part, value in graded.parts.items()}
    return Score(total, {**parts, **inner}, step_rewards=tuple(sorted(steps.items())))


def why_failed(graded: Graded, length: int) -> str:
    """Why ``graded`` cannot be used for a response of ``length`` tokens; empty where it can."""
    if graded.failed:
        return graded.failed
    if graded.score is None:
        return NO_SCORE
    if not math.isfinite(graded.score):
        return f"the score is {graded.score}"
    for index, value in graded.step_rewards:
        if not 0 <= index < length:
            return f"a step reward stands at token {index} of a response of {length}"
        if not math.isfinite(value):
            return f"the step reward at token {index} is {value}"
    return ""
