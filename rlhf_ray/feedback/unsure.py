"""Which prompts are worth a label: those on whose responses the reward model is unsure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import combinations


def unsureness(members: Sequence[Sequence[float]], responses: Sequence[Hashable]) -> float:
    """Mean entropy, in nats, of which response of a pair is better: log 2 where nobody can tell, 0 where all can.

    ``members`` [M, K] are logits that each of M reward models (one, or an ensemble) gives K responses to one prompt; by
    Bradley-Terry the first of two wins with sigmoid(r_1 - r_2), and an ensemble says the mean of its members'. A pair
    of the same ``responses`` [K] counts as 0: nobody can learn from it. Raises ValueError for fewer than two.
    """
    places = range(len(members[0]))
    entropies = [
        _entropy(math.fsum(_sigmoid(scores[i] - scores[j]) for scores in members) / len(members))
        if responses[i] != responses[j]
        else 0.0
        for i, j in combinations(places, 2)
    ]
    if not entropies:
        raise ValueError(f"{len(places)} scores make no pair")
    return math.fsum(entropies) / len(entropies)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _entropy(probability: float) -> float:
    return -math.fsum(p * math.log(p) for p in (probability, 1 - probability) if p > 0)


def most_unsure(measures: Sequence[float], count: int) -> list[int]:
    """Places of the ``count`` largest measures, in ascending order; of equal ones the first."""
    largest = sorted(range(len(measures)), key=lambda place: (-measures[place], place))[:count]
    return sorted(largest)
