"""What is known of a policy after so many samples: one point of a learning curve."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A policy after ``step`` steps."""

    step: int
    sampled_tokens: float  # that training has used so far
    gold: float  # mean grade of held-out responses, 0 to 1
    score: float  # mean normalised score that the reward model gives
