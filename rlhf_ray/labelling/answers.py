"""From a filled-in page to a judgement and back.

A page's fields are text by name. ``place`` counts responses as they are shown: 0 is the one called A.

    rank-PLACE           1 (best) .. K; equal is a tie
    rate-AXIS-PLACE      1 .. scale, of the axis with that number; may be left out
    why, comment         a reason from the list, and one in their own words
    seconds              how long the page was looked at
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rlhf_ray.feedback.records import VERDICTS, Judgement
from rlhf_ray.labelling.errors import AnswerError

Fields: TypeAlias = Mapping[str, str]
LETTERS = "ABCDEFGHI"
MAX_RESPONSES = len(LETTERS)
MAX_COMMENT = 2000
REASONS = (
    "I cannot judge this",
    "The prompt is unclear",
    "Empty or broken text",
    "Harmful or upsetting",
    "Personal data",
)
UNDONE = "undone"  # the reason of a correction that takes an answer back


def judgement_of(
    fields: Fields,
    *,
    verdict: str,
    item_id: str,
    annotator: str,
    order: tuple[int, ...],
    axes: Sequence[str],
    scale: int,
    guideline: str,
    at_most_s: float,
    corrects: int | None,
) -> Judgement:
    """Read what an annotator says of an item whose candidate ``order[place]`` was shown in each place.

    Ranks come out without gaps, by candidate and from 0. The time is the page's own, and never more than ``at_most_s``
    seconds, which have passed since the item was given. Raises AnswerError, in words for the annotator.
    """
    known = next((each for each in VERDICTS if each == verdict), None)
    if known is None:
        raise AnswerError("Choose one of the buttons below the responses.")
    reason = _reason(fields)
    if known in ("skipped", "flagged") and not reason:
        raise AnswerError("Say why: choose a reason or write one.", field="why")
    return Judgement(
        item_id=item_id,
        annotator=annotator,
        verdict=known,
        ranks=_ranks(fields, order) if known == "ranked" else (),
        ratings=_ratings(fields, order, axes, scale),
        reason=reason,
        seconds=_seconds(fields, at_most_s),
        guideline=guideline,
        shown_order=order,
        corrects=corrects,
    )


def fields_of(judgement: Judgement, order: tuple[int, ...], axes: Sequence[str]) -> dict[str, str]:
    """The page, filled in with a judgement: what to show when it is taken back."""
    fields = {f"rank-{place}": str(judgement.ranks[each] + 1) for place, each in enumerate(order) if judgement.ranks}
    for number, axis in enumerate(axes):
        given = judgement.ratings.get(axis, ())
        for place, each in enumerate(order):
            if given and given[each] is not None:
                fields[f"rate-{number}-{place}"] = f"{given[each]:g}"
    if judgement.seconds is not None:
        fields["seconds"] = f"{judgement.seconds:g}"
    why, _, comment = judgement.reason.partition(": ")
    fields |= {"why": why, "comment": comment} if why in REASONS else {"comment": judgement.reason}
    return {name: value for name, value in fields.items() if value}


def draft_of(fields: Fields, *, count: int, num_axes: int) -> dict[str, str]:
    """What of a half-made answer is kept: the fields above and nothing else."""
    names = {f"rank-{place}" for place in range(count)}
    names |= {f"rate-{axis}-{place}" for axis in range(num_axes) for place in range(count)}
    names |= {"why", "comment", "seconds"}
    return {name: value[:MAX_COMMENT] for name, value in fields.items() if name in names and value}


def _ranks(fields: Fields, order: tuple[int, ...]) -> tuple[int, ...]:
    missing = [LETTERS[place] for place in range(len(order)) if not fields.get(f"rank-{place}")]
    if missing:
        raise AnswerError(f"Not ranked yet: {', '.join(missing)}.", field=f"rank-{LETTERS.index(missing[0])}")
    given = [_whole(fields[f"rank-{place}"], len(order), f"rank-{place}") for place in range(len(order))]
    levels = sorted(set(given))
    ranks = [0] * len(order)
    for place, candidate in enumerate(order):
        ranks[candidate] = levels.index(given[place])
    return tuple(ranks)


def _ratings(
    fields: Fields, order: tuple[int, ...], axes: Sequence[str], scale: int
) -> dict[str, tuple[float | None, ...]]:
    ratings: dict[str, tuple[float | None, ...]] = {}
    for number, axis in enumerate(axes):
        given: list[float | None] = [None] * len(order)
        for place, candidate in enumerate(order):
            name = f"rate-{number}-{place}"
            given[candidate] = float(_whole(fields[name], scale, name)) if fields.get(name) else None
        if any(value is not None for value in given):
            ratings[axis] = tuple(given)
    return ratings


def _whole(text: str, most: int, name: str) -> int:
    if text not in {str(value) for value in range(1, most + 1)}:
        raise AnswerError(f"Choose a number from 1 to {most}.", field=name)
    return int(text)


def _reason(fields: Fields) -> str:
    why = fields.get("why", "")
    if why and why not in REASONS:
        raise AnswerError("Choose a reason from the list, or write your own.", field="why")
    comment = fields.get("comment", "").strip()
    if len(comment) > MAX_COMMENT:
        raise AnswerError(f"Keep the comment under {MAX_COMMENT} characters.", field="comment")
    return ": ".join(part for part in (why, comment) if part)


def _seconds(fields: Fields, at_most: float) -> float:
    try:
        said = float(fields.get("seconds") or at_most)
    except ValueError:
        said = at_most
    if not math.isfinite(said):
        said = at_most
    return round(min(max(said, 0.0), max(at_most, 0.0)), 1)
