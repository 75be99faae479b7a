"""What of a judge's work people look at: a sample with known chances, or all that the judge was unsure of.

Every sampled item has an inclusion probability, above 0 for every item, so that what people say of the sample tells
something of all items, however the sample was chosen.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rlhf_ray.errors import ConfigError

Strategy: TypeAlias = Literal["unsure", "stratified", "below"]
FLOOR = 0.1  # of an item's share in the sample, against one of which the judge knows nothing
EDGES = (0.6, 0.7, 0.8, 0.9)  # of strata by confidence


@dataclass(frozen=True)
class Reviewable:
    """An item that the judge has judged. ``confidence`` is of its least certain pair: max(p, 1 - p), 0.5 to 1."""

    item_id: str
    kind: str
    confidence: float


@dataclass(frozen=True)
class Chosen:
    """An item for people, and how likely it was to be chosen."""

    item_id: str
    inclusion: float
    stratum: str = ""


def choose(items: Sequence[Reviewable], strategy: Strategy, *, size: int, threshold: float, seed: int) -> list[Chosen]:
    """Choose what people review; the same arguments choose the same items, in the order of ``items``.

    ``unsure`` draws ``size`` items with chances that grow with the judge's doubt, ``stratified`` draws them at random
    within kinds of prompts and levels of confidence, in proportion; ``below`` takes every item under ``threshold``.
    """
    if strategy == "below":
        return [Chosen(item.item_id, 1.0) for item in items if item.confidence < threshold]
    if size < 1:
        raise ConfigError("--sample", size, "must be 1 or more", "say how many items people shall review")
    if size >= len(items):
        return [Chosen(item.item_id, 1.0) for item in items]
    draw = random.Random(f"review/{strategy}/{seed}")
    return _unsure(items, size, draw) if strategy == "unsure" else _stratified(items, size, draw)


def _unsure(items: Sequence[Reviewable], size: int, draw: random.Random) -> list[Chosen]:
    weights = [FLOOR + (1.0 - FLOOR) * 2.0 * (1.0 - item.confidence) for item in items]
    chances = inclusion_probabilities(weights, size)
    return [Chosen(items[place].item_id, chances[place]) for place in systematic_sample(chances, draw)]


def inclusion_probabilities(weights: Sequence[float], size: int) -> list[float]:
    """Chances in proportion to ``weights`` that sum to ``size``; what would exceed 1 is certain, the rest shares."""
    certain: set[int] = set()
    while True:
        total = math.fsum(weight for place, weight in enumerate(weights) if place not in certain)
        scale = (size - len(certain)) / total if total else 0.0
        over = {place for place, weight in enumerate(weights) if place not in certain and weight * scale >= 1.0}
        if not over:
            return [1.0 if place in certain else weight * scale for place, weight in enumerate(weights)]
        certain |= over


def systematic_sample(chances: Sequence[float], draw: random.Random) -> list[int]:
    """Places, each with its own chance, as many as the chances sum to (Madow 1949), from a shuffled list."""
    order = list(range(len(chances)))
    draw.shuffle(order)
    start, passed, taken = draw.random(), 0.0, []
    for place in order:
        before, passed = passed, passed + chances[place]
        if math.ceil(before - start) < math.ceil(passed - start) or chances[place] >= 1.0:
            taken.append(place)
    return sorted(taken)


def _stratified(items: Sequence[Reviewable], size: int, draw: random.Random) -> list[Chosen]:
    strata: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        strata[stratum_of(item)].append(place)
    chosen = []
    for name, count in allocation({name: len(own) for name, own in strata.items()}, size).items():
        own = strata[name]
        chosen += [(place, Chosen(items[place].item_id, count / len(own), name)) for place in draw.sample(own, count)]
    return [each for _, each in sorted(chosen, key=lambda pair: pair[0])]


def stratum_of(item: Reviewable) -> str:
    level = sum(item.confidence >= edge for edge in EDGES)
    return f"{item.kind}/{(0.5, *EDGES)[level]:g}"


def allocation(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """How many of each stratum: in proportion, one at the least (or its agreement could never be told).

    Raises ConfigError where there are more strata than ``total``.
    """
    if total < len(sizes):
        rule = f"must be {len(sizes)} or more, one for each kind of prompt at each level of confidence"
        raise ConfigError("--sample", total, rule, "raise it, or use --strategy unsure")
    whole = sum(sizes.values())
    exact = {name: total * size / whole for name, size in sizes.items()}
    counts = {name: max(1, int(share)) for name, share in exact.items()}
    while (difference := total - sum(counts.values())) != 0:
        step = 1 if difference > 0 else -1
        open_ones = [name for name in sizes if (counts[name] < sizes[name] if step > 0 else counts[name] > 1)]
        counts[max(open_ones, key=lambda name: (step * (exact[name] - counts[name]), name))] += step
    return counts
