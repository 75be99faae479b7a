"""How well annotators answer: agreement, known answers, bias for a place or for length, signs of guessing.

Tests are exact binomial tests over items, one pair of responses an item: the pairs of one ranking depend on each
other, and would make every p-value too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from rlhf_ray.feedback.records import Item, Judgement
from rlhf_ray.metrics.statistics import Interval, proportion_interval

MIN_ANSWERS = 30  # a warning is about people: below this many items none is given
ALARM = 0.01  # a p-value under which a warning is given; one honest annotator in a hundred gets a wrong one
CHANCE = 0.5
USUAL_AGREEMENT = 0.65  # of careful people on hard comparisons (63% in Bai et al. 2022, 73% in Ouyang et al. 2022)
MOSTLY_LONGER = 0.8

Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Tally:
    """``hits`` of ``count`` items."""

    hits: int = 0
    count: int = 0

    @property
    def share(self) -> Interval:
        return proportion_interval(self.hits, self.count)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.hits + other.hits, self.count + other.count)


@dataclass(frozen=True)
class Quality:
    """Of one annotator. ``right`` counts pairs with a known answer; the others count items.

    first: the response shown first beat the one shown last. longer: the longest beat the shortest. agreed: known
    answers and other people's judgements say the same. ``warnings`` are reasons to look, not verdicts.
    """

    annotator: str
    right: Tally
    first: Tally
    longer: Tally
    agreed: Tally
    warnings: tuple[str, ...]


def qualities(items: Mapping[str, Item], judgements: Iterable[Judgement]) -> list[Quality]:
    """One record an annotator, by name, from the judgements that count."""
    ranked = [each for each in judgements if each.verdict == "ranked"]
    names = sorted({each.annotator for each in ranked})
    of = {name: [each for each in ranked if each.annotator == name] for name in names}
    longer = {name: tally(_longer(items[each.item_id], each) for each in of[name]) for name in names}
    agreed = {name: agreement_with_others(name, items, ranked) for name in names}
    return [
        Quality(
            name,
            right=sum((right_pairs(items[each.item_id], each) for each in of[name]), Tally()),
            first=(first := tally(map(_first, of[name]))),
            longer=longer[name],
            agreed=agreed[name],
            warnings=(
                *_guesses(agreed[name], others(agreed, name)),
                *_follows_length(longer[name], others(longer, name)),
                *_follows_place(first),
            ),
        )
        for name in names
    ]


# ------------------------------------------------------------------------------------------------------------- counts
def tally(outcomes: Iterable[bool | None]) -> Tally:
    """Count what was decided; None is a tie or nothing to decide."""
    decided = [outcome for outcome in outcomes if outcome is not None]
    return Tally(sum(decided), len(decided))


def right_pairs(item: Item, judgement: Judgement) -> Tally:
    """Of the pairs with a known better response, those that the judgement decides the same way. A tie is not right."""
    known = [(i, j) for i, j in _ordered_pairs(item.gold_ranks)]
    return Tally(sum(judgement.ranks[i] < judgement.ranks[j] for i, j in known), len(known))


def agreement_with_others(name: str, items: Mapping[str, Item], ranked: Sequence[Judgement]) -> Tally:
    """Of each item, does the annotator order the extremes as the known answer does, or else as each other annotator?"""
    by_item: dict[str, list[Judgement]] = {}
    for judgement in ranked:
        by_item.setdefault(judgement.item_id, []).append(judgement)
    outcomes: list[bool | None] = []
    for item_id, said in by_item.items():
        own = next((each for each in said if each.annotator == name), None)
        if own is None:
            continue
        gold = items[item_id].gold_ranks
        references = [gold] if gold else [each.ranks for each in said if each.annotator != name][:1]
        outcomes += [_decides(own.ranks, extremes(ranks)) for ranks in references]
    return tally(outcomes)


def extremes(ranks: Sequence[int]) -> Pair | None:
    """The first of the best and the first of the worst; None where all are equal."""
    if not ranks or min(ranks) == max(ranks):
        return None
    return ranks.index(min(ranks)), ranks.index(max(ranks))


def places_of_winners(judgements: Iterable[Judgement]) -> dict[int, list[int]]:
    """By number of responses, how often the single best one stood in each place. Without a bias: equally often."""
    counts: dict[int, list[int]] = {}
    for each in judgements:
        if each.verdict == "ranked" and each.shown_order and each.ranks.count(min(each.ranks)) == 1:
            place = each.shown_order.index(each.ranks.index(min(each.ranks)))
            counts.setdefault(len(each.ranks), [0] * len(each.ranks))[place] += 1
    return dict(sorted(counts.items()))


def _first(judgement: Judgement) -> bool | None:
    order = judgement.shown_order
    return _decides(judgement.ranks, (order[0], order[-1]) if len(order) > 1 else None)


def _longer(item: Item, judgement: Judgement) -> bool | None:
    lengths = [len(candidate.text) for candidate in item.candidates]
    return _decides(judgement.ranks, extremes([-length for length in lengths]))


def _decides(ranks: Sequence[int], pair: Pair | None) -> bool | None:
    """Whether the first of the pair is ranked above the second; None for a tie."""
    if pair is None or ranks[pair[0]] == ranks[pair[1]]:
        return None
    return ranks[pair[0]] < ranks[pair[1]]


def _ordered_pairs(ranks: Sequence[int]) -> list[Pair]:
    pairs = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in pairs if ranks[i] != ranks[j]]


# ----------------------------------------------------------------------------------------------------------- warnings
def _guesses(own: Tally, rest: Tally) -> list[str]:
    """Agreement that chance explains, and that would be rare for somebody as careful as the others."""
    usual = max(USUAL_AGREEMENT, rest.hits / rest.count if rest.count >= MIN_ANSWERS else 0.0)
    if own.count < MIN_ANSWERS:
        return []
    above_chance = upper_tail(own.hits, own.count, CHANCE)
    as_usual = lower_tail(own.hits, own.count, min(usual, 0.99))
    if above_chance <= 0.05 or as_usual >= ALARM:
        return []
    return [
        f"answers as if at random: agrees on {own.hits} of {own.count} items (p = {above_chance:.2g} for chance, "
        f"{as_usual:.1g} for {usual:.0%} agreement)"
    ]


def _follows_length(own: Tally, rest: Tally) -> list[str]:
    """The longer response wins nearly always, and more often than the others let it."""
    usual = max(CHANCE, rest.hits / rest.count if rest.count >= MIN_ANSWERS else CHANCE)
    return _too_many(own, min(usual, 0.99), MOSTLY_LONGER, "nearly always prefers the longer response")


def _follows_place(own: Tally) -> list[str]:
    """The order is shuffled, so that without a bias the first place wins half the time, however good people are."""
    last = Tally(own.count - own.hits, own.count)
    return [
        *_too_many(own, CHANCE, CHANCE, "prefers the response that is shown first"),
        *_too_many(last, CHANCE, CHANCE, "prefers the response that is shown last"),
    ]


def _too_many(own: Tally, usual: float, at_least: float, words: str) -> list[str]:
    if own.count < MIN_ANSWERS or own.hits < at_least * own.count:
        return []
    p = upper_tail(own.hits, own.count, usual)
    return [f"{words}: {own.hits} of {own.count} items (p = {p:.1g})"] if p < ALARM else []


def others(tallies: Mapping[str, Tally], name: str) -> Tally:
    """Everybody's but one's."""
    return sum((each for other, each in tallies.items() if other != name), Tally())


def upper_tail(hits: int, count: int, chance: float) -> float:
    """P(X >= hits) for X ~ Binomial(count, chance)."""
    return _probability(range(hits, count + 1), count, chance)


def lower_tail(hits: int, count: int, chance: float) -> float:
    """P(X <= hits) for X ~ Binomial(count, chance)."""
    return _probability(range(hits + 1), count, chance)


def _probability(values: Iterable[int], count: int, chance: float) -> float:
    log: Callable[[float], float] = math.lgamma  # factorials of large counts fit no float
    terms = (
        math.exp(
            log(count + 1) - log(k + 1) - log(count - k + 1) + k * math.log(chance) + (count - k) * math.log1p(-chance)
        )
        for k in values
    )
    return min(1.0, math.fsum(terms))
