"""Do annotators agree? Chance-corrected measures over pairs of candidates, each of which one annotator may decide.

A unit is a pair of candidates of an item; a value says which of the two is better, or that they are tied.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

from rlhf_ray.feedback.records import Judgement

Unit: TypeAlias = tuple[str, int, int]  # item, two candidates
Values: TypeAlias = Mapping[Hashable, Mapping[str, Hashable]]  # by unit, then by annotator


def pair_values(judgements: Iterable[Judgement]) -> dict[Unit, dict[str, int]]:
    """What each annotator says of every pair: -1 the first is better, 1 the second, 0 a tie. Rankings only."""
    values: dict[Unit, dict[str, int]] = defaultdict(dict)
    for judgement in judgements:
        if judgement.verdict != "ranked":
            continue
        for i, j in combinations(range(len(judgement.ranks)), 2):
            difference = judgement.ranks[i] - judgement.ranks[j]
            values[judgement.item_id, i, j][judgement.annotator] = (difference > 0) - (difference < 0)
    return dict(values)


def oriented(values: Mapping[Unit, Mapping[str, int]]) -> dict[Unit, dict[str, int]]:
    """Turn about half of the pairs round, by a hash, so that "the first is better" says nothing of itself.

    Which response of a pair comes first is an accident of the file. Where it is the better one (chosen, rejected), two
    people agree by chance nearly always, and measures that take chance away would show no agreement at all.
    """
    return {
        unit: {name: value if _is_even(unit) else -value for name, value in given.items()}
        for unit, given in values.items()
    }


def _is_even(unit: Unit) -> bool:
    return hashlib.sha256(repr(unit).encode()).digest()[0] % 2 == 0


def krippendorff_alpha(values: Mapping[Unit, Mapping[str, int]] | Values) -> float:
    """Return alpha for nominal values (Krippendorff 2019, chapter 12): 1 - observed / expected disagreement.

    Any number of annotators, any of them missing. NaN where no unit has two values; 1 where all values are equal.
    """
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for given in values.values():
        said = list(given.values())
        if len(said) < 2:
            continue
        for a, b in combinations(range(len(said)), 2):
            for pair in ((said[a], said[b]), (said[b], said[a])):
                coincidences[pair] += 1 / (len(said) - 1)  # type: ignore[assignment]
    total = math.fsum(coincidences.values())
    if total == 0:
        return math.nan
    marginals: dict[Hashable, float] = defaultdict(float)
    for (value, _), count in coincidences.items():
        marginals[value] += count
    observed = math.fsum(count for (a, b), count in coincidences.items() if a != b)
    expected = (total**2 - math.fsum(count**2 for count in marginals.values())) / (total - 1)
    return 1.0 if expected == 0 else 1.0 - observed / expected


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Return kappa of two annotators' values of the same units (Cohen 1960): (observed - chance) / (1 - chance).

    NaN without units; 1 where both say one and the same thing throughout.
    """
    if len(first) != len(second):
        raise ValueError(f"both must have judged the same units, not {len(first)} and {len(second)}")
    if not first:
        return math.nan
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    counts = Counter(first), Counter(second)
    chance = sum(counts[0][value] * counts[1][value] for value in counts[0]) / len(first) ** 2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def kappas(values: Mapping[Unit, Mapping[str, int]]) -> dict[tuple[str, str], tuple[float, int]]:
    """Cohen's kappa of every two annotators who share units, and how many they share."""
    names = sorted({name for given in values.values() for name in given})
    found = {}
    for a, b in combinations(names, 2):
        shared = [(given[a], given[b]) for given in values.values() if a in given and b in given]
        if shared:
            first, second = zip(*shared, strict=True)
            found[a, b] = cohen_kappa(first, second), len(shared)
    return found
