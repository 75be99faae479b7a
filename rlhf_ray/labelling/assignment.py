"""Who is asked what next: overlap, questions with known answers, and no item in two hands at once.

The rules, all of them pure functions of what the store holds and of the clock:

1. Every ``overlap_every``-th item is wanted from ``overlap`` annotators, every other item from one.
2. An item has room for an annotator who has not said anything of it while fewer others than it is wanted from have
   answered it or hold it. Who holds it, holds a lease; a lease that has run out holds nothing.
3. An annotator who has something in hand gets the same again: a page may be loaded twice.
4. In every ``gold_every`` questions of an annotator, one at a place that only the server knows has a known answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlhf_ray.config.labelling import AssignmentConfig

ByItem: TypeAlias = Mapping[str, frozenset[str]]
NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Question:
    """An item that may be asked."""

    item_id: str
    is_gold: bool = False


@dataclass(frozen=True)
class Lease:
    """``annotator`` has ``item_id`` in hand, from ``since`` until ``until`` (seconds of the clock)."""

    annotator: str
    item_id: str
    since: float
    until: float


@dataclass(frozen=True)
class Standing:
    """What has been said so far, by item: whose answers count, and whom not to ask again (who skipped it, too)."""

    answered: ByItem
    closed: ByItem


@dataclass(frozen=True)
class Progress:
    """Of one annotator: items done with, and items that are left."""

    done: int
    left: int


def wanted(questions: Sequence[Question], rules: AssignmentConfig) -> dict[str, int]:
    """From how many annotators each item without a known answer is wanted."""
    ordinary = [question.item_id for question in questions if not question.is_gold]
    return {
        item_id: rules.overlap if rules.overlap_every and place % rules.overlap_every == 0 else 1
        for place, item_id in enumerate(ordinary)
    }


def with_room(
    questions: Sequence[Question],
    standing: Standing,
    leases: Sequence[Lease],
    *,
    annotator: str,
    rules: AssignmentConfig,
    now: float,
) -> list[str]:
    """The items without a known answer that this annotator may be given, in the order in which they came."""
    holders: dict[str, set[str]] = {}
    for lease in leases:
        if lease.until > now and lease.annotator != annotator:
            holders.setdefault(lease.item_id, set()).add(lease.annotator)
    return [
        item_id
        for item_id, count in wanted(questions, rules).items()
        if annotator not in standing.closed.get(item_id, NOBODY)
        and len(standing.answered.get(item_id, NOBODY) | holders.get(item_id, set())) < count
    ]


def next_item(
    questions: Sequence[Question],
    standing: Standing,
    leases: Sequence[Lease],
    *,
    annotator: str,
    rules: AssignmentConfig,
    now: float,
) -> str | None:
    """The item to show to an annotator; None where nothing is left for them."""
    room = with_room(questions, standing, leases, annotator=annotator, rules=rules, now=now)
    gold = [
        question.item_id
        for question in questions
        if question.is_gold and annotator not in standing.closed.get(question.item_id, NOBODY)
    ]
    in_hand = next((lease.item_id for lease in leases if lease.annotator == annotator), None)
    if in_hand is not None and (in_hand in gold or in_hand in room):
        return in_hand
    done = sum(annotator in names for names in standing.closed.values())
    only_gold = all(question.is_gold for question in questions)
    if gold and (only_gold or (room and is_gold_turn(annotator, done, rules.gold_every))):
        return min(gold, key=lambda item_id: _hash(annotator, item_id))  # not two neighbours at the same time
    return room[0] if room else None


def is_gold_turn(annotator: str, done: int, every: int) -> bool:
    """Whether the question after ``done`` others has a known answer: one in each ``every``, where nobody can tell."""
    if not every:
        return False
    block, place = divmod(done, every)
    return _hash(annotator, block) % every == place


def progress(
    questions: Sequence[Question],
    standing: Standing,
    leases: Sequence[Lease],
    *,
    annotator: str,
    rules: AssignmentConfig,
    now: float,
) -> Progress:
    """How far an annotator is. What others finish first leaves what is left."""
    known = {question.item_id for question in questions}
    done = sum(annotator in names for item_id, names in standing.closed.items() if item_id in known)
    left = with_room(questions, standing, leases, annotator=annotator, rules=rules, now=now)
    return Progress(done, len(left))


def shown_order(item_id: str, annotator: str, count: int) -> tuple[int, ...]:
    """Which candidate stands in which place: shuffled by item and annotator, the same whenever it is asked for."""
    return tuple(sorted(range(count), key=lambda candidate: _hash(item_id, annotator, candidate)))


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8])
