"""Stretches of time, in seconds since the epoch. A list of them is in order of time wherever one is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlhf_ray.ledger.accounts import Account

Stretch: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """A stretch that is booked."""

    account: Account
    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    @property
    def stretch(self) -> Stretch:
        return self.begun, self.ended


@dataclass(frozen=True)
class Books:
    """All that a process did from ``since`` to ``until``: what no span covers it did nothing in."""

    since: float
    until: float
    spans: tuple[Span, ...]


def merged(spans: Iterable[Span], within_s: float = 0.0) -> list[Span]:
    """The spans in their order, neighbours of one account that are at most ``within_s`` apart as one."""
    found: list[Span] = []
    for span in spans:
        if found and found[-1].account == span.account and span.begun - found[-1].ended <= within_s:
            found[-1] = Span(span.account, found[-1].begun, max(found[-1].ended, span.ended))
        else:
            found.append(span)
    return found


def union(stretches: Iterable[Stretch]) -> list[Stretch]:
    """What any of them covers, in order and without overlap."""
    found: list[Stretch] = []
    for begun, ended in sorted(each for each in stretches if each[1] > each[0]):
        if found and begun <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], ended)
        else:
            found.append((begun, ended))
    return found


def common(stretches: Iterable[Stretch], others: Sequence[Stretch]) -> list[Stretch]:
    """What both cover. ``others`` is a union."""
    found = []
    for begun, ended in stretches:
        place = max(0, bisect_right(others, (begun, float("inf"))) - 1)
        while place < len(others) and others[place][0] < ended:
            low, high = max(begun, others[place][0]), min(ended, others[place][1])
            if high > low:
                found.append((low, high))
            place += 1
    return found


def without(stretches: Iterable[Stretch], others: Sequence[Stretch]) -> list[Stretch]:
    """What the first cover and the others do not. ``others`` is a union."""
    found = []
    for begun, ended in stretches:
        at = begun
        for low, high in common([(begun, ended)], others):
            if low > at:
                found.append((at, low))
            at = high
        if ended > at:
            found.append((at, ended))
    return found


def total(stretches: Iterable[Stretch]) -> float:
    return sum(ended - begun for begun, ended in stretches)
