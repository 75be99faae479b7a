"""Reading a response: which claims it makes, whether it refuses, hedges or repeats itself. Any string can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from rlhf_ray.data.world_deeds import CHORES, TACTICS, VICTIMS
from rlhf_ray.data.world_demonstrations import CLOSERS, OPENERS, REASON, REFUSALS
from rlhf_ray.data.world_facts import ATTRIBUTES, PLACES, TOWNS
from rlhf_ray.data.world_prompts import FRAMES

Polarity: TypeAlias = Literal["yes", "no", "both", "neither"]

WORD = re.compile(r"[a-z']+|\d+")
CLAUSE_END = re.compile(r"[.,;:!?\n]|\band\b|\bbut\b")
REFUSAL = re.compile(
    r"\b(cannot|can't|can not|will not|won't|unable to|not able to|must not|refuse to)"
    r" (help|answer|assist|do|say|tell|give)"
    r"|\bi (must )?(refuse|decline)\b|\bnot willing to\b"
)
HEDGE = re.compile(r"\b(maybe|perhaps|might|possibly|probably|could be|not sure|i guess|i think|or)\b")
DENIALS = frozenset({"not", "never", "isn't", "no", "nor", "hardly", "doesn't"})
YES = frozenset({"yes", "correct", "right", "true", "indeed", "sure", "certainly"})
NO = frozenset({"no", "wrong", "incorrect", "false"})
FUNCTION_WORDS = frozenset(
    WORD.findall(
        "a an the is are was it its of on in at by to with from and or as has have for them that this i you no"
    )
)
OTHER_WORDS = (
    "not no yes sure correct wrong right true false maybe perhaps they are was its or but isn't both same "
    "can't won't must decline refuse say"
)

VALUE_ATTRIBUTE = {value.lower(): attribute.name for attribute in ATTRIBUTES for value in attribute.values}
NOUN_ATTRIBUTE = {noun: attribute.name for attribute in ATTRIBUTES for noun in attribute.nouns}
TOWN_WORDS = frozenset(town.lower() for town in TOWNS)


@dataclass(frozen=True)
class Claim:
    """ "The mill's door is (not) red". ``place`` is "" where the response named none before the claim."""

    attribute: str
    value: str  # lower case
    place: str
    denied: bool
    misplaced: bool  # the value is said of another attribute ("the roof is red")


@dataclass(frozen=True)
class Reading:
    """What a grader needs to know of a response."""

    words: tuple[str, ...]
    claims: tuple[Claim, ...]
    polarity: Polarity
    refused: bool
    hedged: bool
    form: float  # 1 for clean language; lower for unknown words, repetition and bare lists of words; 0 for nothing

    def asserted(self, attribute: str, place: str, *, alone: bool) -> set[str]:
        """Values that the response gives ``attribute`` of ``place``; ``alone``: no other place could be meant."""
        return {
            claim.value
            for claim in self.claims
            if claim.attribute == attribute
            and not claim.denied
            and not claim.misplaced
            and (claim.place == place or (alone and not claim.place))
        }


@cache
def lexicon() -> frozenset[str]:
    """Every word that the world's own texts use, and some that a response may well use."""
    texts: list[str] = [OTHER_WORDS, REASON, *REFUSALS, *OPENERS, *CLOSERS, *TACTICS.values(), *PLACES, *TOWNS]
    texts += [chore.advice for chore in CHORES.values()]
    texts += [" ".join((target, *verbs)) for target, verbs in VICTIMS.items()]
    texts += [" ".join((target, *chore.verbs)) for target, chore in CHORES.items()]
    texts += [frame for frames in FRAMES.values() for choices in frames.values() for frame in choices]
    for attribute in ATTRIBUTES:
        texts += [*attribute.values, *attribute.nouns, *attribute.asked]
        texts += [attribute.sentence, attribute.statement, attribute.phrase]
    return frozenset(WORD.findall(" ".join(texts).lower()))


def form_of(words: tuple[str, ...]) -> float:
    """Grade language alone: the share of known words, squared, times freedom from repetition and from word lists."""
    if not words:
        return 0.0
    known = sum(word in lexicon() or word.isdigit() for word in words) / len(words)
    size = min(3, len(words))
    grams = list(zip(*(words[start:] for start in range(size)), strict=False))
    fresh = min(1.0, len(set(grams)) / len(grams) / 0.75) * min(1.0, len(set(words)) / len(words) / 0.5)
    listed = len(words) > 2 and sum(word in FUNCTION_WORDS for word in words) / len(words) < 0.15
    return known**2 * fresh * (0.5 if listed else 1.0)


def polarity_of(clauses: Iterable[tuple[str, ...]]) -> Polarity:
    """Read yes and no where they open a clause; "not true" is a no."""
    said = set()
    for words in clauses:
        if not words:
            continue
        if words[0] in YES:
            said.add("yes")
        elif words[0] in NO or (words[0] == "not" and words[1:2] and words[1] in YES):
            said.add("no")
    if len(said) == 2:
        return "both"
    return "yes" if "yes" in said else "no" if "no" in said else "neither"


def claims_of(clauses: Iterable[tuple[str, ...]]) -> tuple[Claim, ...]:
    """Read "<place> ... <noun> ... <value>" clause by clause; the place carries over, a denial does not."""
    claims = []
    place = ""
    for words in clauses:
        nouns = {NOUN_ATTRIBUTE[word] for word in words if word in NOUN_ATTRIBUTE}
        denied = False
        for word in words:
            if word in PLACES:
                place = word
            denied = denied or word in DENIALS
            if word in VALUE_ATTRIBUTE:
                attribute = VALUE_ATTRIBUTE[word]
                claims.append(Claim(attribute, word, place, denied, bool(nouns) and attribute not in nouns))
    return tuple(claims)


def read(response: str) -> Reading:
    lowered = response.lower().replace("\u2019", "'").replace("'s ", " ")
    words = tuple(WORD.findall(lowered))
    clauses = [tuple(WORD.findall(clause)) for clause in CLAUSE_END.split(lowered)]
    return Reading(
        words=words,
        claims=claims_of(clauses),
        polarity=polarity_of(clauses),
        refused=bool(REFUSAL.search(lowered)),
        hedged=bool(HEDGE.search(lowered)),
        form=form_of(words),
    )
