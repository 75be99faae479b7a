"""From lives to lanes: every second of a worker gets its account, from what it says, or from what the others do."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import TypeAlias

from rlhf_ray.ledger.accounts import DRIVER, WAITS, Account, waits_of
from rlhf_ray.ledger.lives import Life, Step, Story
from rlhf_ray.ledger.spans import Span, Stretch, common, merged, union, without

Lanes: TypeAlias = Mapping[str, Sequence[Span]]
STAYS = (Account.START_UP, Account.RESTART, Account.AT_REST)  # whatever the driver says of the time


def lanes(story: Story) -> dict[str, list[Span]]:
    """By worker, all that it did and waited for, in order of time.

    What a worker says is taken as it is: where it books two things at once, or more than its life is long, so does its
    lane, and where its books are missing the lane has a hole. The balance shows both.
    """
    own = [(life, _own(life, story)) for life in story.lives]
    work = _work(spans for _, spans in own)
    found: dict[str, list[Span]] = defaultdict(list)
    for life, spans in own:
        every = [*spans, *_waits(life, spans, work)]
        found[life.worker] += _discarded(_decided(every, life, story), story.steps)
    order = sorted(found, key=lambda worker: (worker != DRIVER, *_natural(worker)))
    return {worker: merged(sorted(found[worker], key=lambda span: span.begun)) for worker in order}


def _natural(worker: str) -> tuple[str, int]:
    role, _, number = worker.rpartition(" ")
    return role, int(number) if number.isdigit() else 0


# ------------------------------------------------------------------------------------------------------ what it says
def _own(life: Life, story: Story) -> list[Span]:
    """What the worker has booked, and what is known of it before it served and after its last books."""
    if life.worker == DRIVER:
        return _before_the_first_stage(life, story)
    spans = [span for books in life.books for span in books.spans]
    starts = Account.RESTART if life.restart else Account.START_UP
    if life.restart:
        spans = [Span(starts, *s.stretch) if s.account == Account.START_UP else s for s in spans]
    booked, resting = union(span.stretch for span in spans), union(life.rests)
    first, last = _heard(life)
    starting = [(at, _next(booked, at)) for at in (life.begun, *(woke for _, woke in life.rests))]
    before = without(union([(life.begun, first), *common(starting, _covered(life))]), booked)
    known = [*before, *without(resting, booked)]
    after = without([(last, life.ended)] if life.ended > last else [], union(known))
    ends = {"lost": Account.RESTART, "closed": Account.START_UP}.get(life.how)
    return [
        *spans,
        *(Span(starts, *each) for each in without(before, resting)),
        *(Span(Account.AT_REST, *each) for each in without(resting, booked)),
        *(Span(ends, *each) for each in after if ends is not None),
    ]


def _before_the_first_stage(driver: Life, story: Story) -> list[Span]:
    """The cluster starts."""
    stages = [at for _, at in story.stages if driver.begun <= at <= driver.ended]
    return [Span(Account.START_UP, driver.begun, min(stages))] if stages and min(stages) > driver.begun else []


def _next(booked: Sequence[Stretch], at: float) -> float:
    """When the first call is booked after ``at``: what it was given has been unpacked by then, vendor libraries too."""
    return next((begun for begun, _ in booked if begun >= at), at)


def _covered(life: Life) -> list[Stretch]:
    return union((books.since, books.until) for books in life.books)


def _heard(life: Life) -> Stretch:
    """From when to when its books go. Of one that was never heard and is not known to be lost, nothing is known."""
    if life.books:
        return life.books[0].since, life.books[-1].until
    return (life.begun, life.begun) if life.how != "silent" else (life.begun, life.ended)


def _work(spans: Iterable[Sequence[Span]]) -> dict[Account, list[Stretch]]:
    """By what one waits for meanwhile: when anybody did work of that kind."""
    stretches: dict[Account, list[Stretch]] = defaultdict(list)
    for each in spans:
        for span in each:
            stretches[span.account].append(span.stretch)
    return {waiting: union(s for kind in kinds for s in stretches[kind]) for kinds, waiting in WAITS}


# -------------------------------------------------------------------------------------------------- what it waits for
def _waits(life: Life, own: Sequence[Span], work: Mapping[Account, Sequence[Stretch]]) -> list[Span]:
    """The time in which it did nothing, by what the others did."""
    known = _covered(life) if life.worker != DRIVER else [(life.begun, life.ended)]
    idle, found = without(known, union(span.stretch for span in own)), list[Span]()
    for _, waiting in waits_of(life.role):
        found += [Span(waiting, *each) for each in common(idle, work[waiting])]
        idle = without(idle, work[waiting])
    return [*found, *(Span(Account.DRIVER, *each) for each in idle)]


# ------------------------------------------------------------------------------------------------ what the driver says
def _decided(spans: Iterable[Span], life: Life, story: Story) -> list[Span]:
    """The spans, in which the driver's word on a stretch of time holds. An evaluation is one for everybody."""
    found = list(spans)
    for account in (Account.SYNC, Account.CHECKPOINT, Account.EVALUATION, Account.RESTART):
        said = union((d.begun, d.ended) for d in story.during if d.account == account and d.role in ("", life.role))
        affected = (Account.DRIVER,) if account in (Account.SYNC, Account.CHECKPOINT) else None
        found = [part for span in found for part in _said(span, account, said, affected)] if said else found
    return found


def _said(span: Span, account: Account, said: Sequence[Stretch], affected: Sequence[Account] | None) -> list[Span]:
    if span.account in STAYS or (affected is not None and span.account not in affected):
        return [span]
    inside = [Span(account, *each) for each in common([span.stretch], said)]
    return [*inside, *(Span(span.account, *each) for each in without([span.stretch], said))] if inside else [span]


def _discarded(spans: Sequence[Span], steps: Sequence[Step]) -> list[Span]:
    """The spans, where of the generation in each step the share of its discarded tokens is cut off, at the end."""
    wasted = sorted((step for step in steps if step.discarded), key=lambda step: step.begun)
    windows = [(step.begun, step.ended) for step in wasted]
    found = [span for span in spans if span.account != Account.GENERATION]
    for stretch in (span.stretch for span in spans if span.account == Account.GENERATION):
        found += [Span(Account.GENERATION, *each) for each in without([stretch], windows)]
        for begun, ended in common([stretch], windows):
            step = wasted[bisect_right(windows, (begun, inf)) - 1]
            turn = begun + step.useful_share * (ended - begun)
            found += [Span(Account.GENERATION, begun, turn), Span(Account.DISCARDED, turn, ended)]
    return [span for span in found if span.seconds > 0]
