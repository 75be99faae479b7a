"""What a preference store holds: candidates with what made them, items to be judged, judgements.

**The rule.** A judgement becomes pairs: candidate i beats candidate j where ``ranks[i] < ranks[j]``. Equal ranks, and a
verdict other than ``ranked``, give none. Of a judgement and its corrections only the last one counts.

**The rule by axis.** Of the candidates that have a rating on an axis the higher rating is the better; equal ratings are
a tie. An axis with fewer than two ratings, or with equal ones only, compares nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rlhf_ray.errors import DataError
from rlhf_ray.records import Ranking, SoftLabel, TextPrompt

AnnotatorKind: TypeAlias = Literal["human", "judge", "simulated", "unknown"]
Verdict: TypeAlias = Literal["ranked", "all_bad", "skipped", "flagged"]
Setting: TypeAlias = str | int | float | bool | None
VERDICTS: tuple[Verdict, ...] = ("ranked", "all_bad", "skipped", "flagged")


@dataclass(frozen=True)
class Candidate:
    """A response that may be judged, and what made it: the model's version, its sampling settings, the seed."""

    text: str
    model: str = ""
    sampling: Mapping[str, Setting] = field(default_factory=dict)
    seed: int | None = None
    token_ids: tuple[int, ...] = ()  # as they were sampled; empty where the text never was tokens of our model


@dataclass(frozen=True)
class Item:
    """Candidates for one prompt, judged together. ``gold_ranks`` are known answers, for quality control.

    One candidate alone can be rated and labelled, and gives no pair.
    """

    prompt: TextPrompt
    candidates: tuple[Candidate, ...]
    gold_ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.candidates:
            raise DataError(f"prompt {self.prompt.prompt_id!r} has no candidates; give one or more")
        require_ranks(self.gold_ranks, len(self.candidates), "gold_ranks", may_be_empty=True)


@dataclass(frozen=True)
class Judgement:
    """What one annotator says of one item.

    ``ranks`` has one number a candidate, lower is better, equal is a tie; it is empty unless the verdict is ``ranked``.
    ``ratings`` hold one number a candidate by axis (helpful, honest, harmless ...), None where none was given.
    ``shown_order[i]`` is the candidate that was shown in place i. ``corrects`` is the judgement that this one replaces.
    ``soft`` labels say how sure a judge is of pairs; ``axis`` is what was compared, empty where it was the whole.
    """

    item_id: str
    annotator: str
    verdict: Verdict = "ranked"
    ranks: tuple[int, ...] = ()
    ratings: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    reason: str = ""
    seconds: float | None = None
    guideline: str = ""
    shown_order: tuple[int, ...] = ()
    corrects: int | None = None
    soft: tuple[SoftLabel, ...] = ()
    axis: str = ""

    def require_fit(self, num_candidates: int) -> None:
        """Raise DataError where the judgement is none of an item with so many candidates."""
        if self.verdict not in VERDICTS:
            raise DataError(f"verdict ({self.verdict!r}) must be one of {', '.join(VERDICTS)}")
        if self.verdict == "ranked":
            require_ranks(self.ranks, num_candidates, "ranks")
        elif self.ranks:
            raise DataError(f"ranks ({self.ranks}) go with the verdict ranked, not {self.verdict}; leave them out")
        require_soft(self.soft, num_candidates if self.verdict == "ranked" else 0)
        for axis, values in self.ratings.items():
            if len(values) != num_candidates:
                raise DataError(f"ratings of {axis!r} must be {num_candidates} numbers or None, not {len(values)}")
        if self.shown_order and sorted(self.shown_order) != list(range(num_candidates)):
            raise DataError(f"shown_order ({self.shown_order}) must name each of {num_candidates} candidates once")
        if self.seconds is not None and not 0 <= self.seconds < 1e9:
            raise DataError(f"seconds ({self.seconds}) must be 0 or more; leave it out where nobody took the time")


@dataclass(frozen=True)
class Kept:
    """A judgement as the store keeps it. ``at`` is the time it came in, ISO 8601 in UTC."""

    judgement_id: int
    at: str
    judgement: Judgement


def require_ranks(ranks: tuple[int, ...], num_candidates: int, name: str, *, may_be_empty: bool = False) -> None:
    """Raise DataError unless there is one whole number a candidate."""
    if may_be_empty and not ranks:
        return
    if len(ranks) != num_candidates or not all(type(rank) is int for rank in ranks):
        raise DataError(
            f"{name} ({ranks!r}) must be {num_candidates} whole numbers, one a candidate: lower is better, equal is a "
            "tie"
        )


def require_soft(soft: tuple[SoftLabel, ...], num_candidates: int) -> None:
    """Raise DataError unless every label speaks of two of the candidates with a probability."""
    for label in soft:
        places = {label.first, label.second}
        if len(places) != 2 or not places <= set(range(num_candidates)) or not 0 <= label.probability <= 1:
            raise DataError(
                f"soft ({label}) must name two of {num_candidates} ranked candidates and a probability from 0 to 1"
            )


def ranking_of(item: Item, judgement: Judgement) -> Ranking | None:
    """What the reward model and DPO train on; None where the verdict ranks nothing."""
    if judgement.verdict != "ranked":
        return None
    token_ids = tuple(candidate.token_ids for candidate in item.candidates)
    return Ranking(
        prompt_id=item.prompt.prompt_id,
        messages=item.prompt.messages,
        responses=tuple(candidate.text for candidate in item.candidates),
        ranks=judgement.ranks,
        annotator=judgement.annotator,
        response_token_ids=token_ids if all(token_ids) else (),
        kind=item.prompt.kind,
        soft=judgement.soft,
        axis=judgement.axis,
    )


def axis_rankings_of(item: Item, judgement: Judgement) -> tuple[Ranking, ...]:
    """What the ratings of a judgement compare, a ranking an axis: for reward models with a head for each."""
    made: list[Ranking] = []
    if judgement.verdict not in ("ranked", "all_bad"):
        return ()
    for axis, given in judgement.ratings.items():
        rated = [(place, value) for place, value in enumerate(given) if value is not None]
        levels = sorted({value for _, value in rated}, reverse=True)
        if len(levels) < 2:
            continue
        token_ids = tuple(item.candidates[place].token_ids for place, _ in rated)
        made.append(
            Ranking(
                prompt_id=item.prompt.prompt_id,
                messages=item.prompt.messages,
                responses=tuple(item.candidates[place].text for place, _ in rated),
                ranks=tuple(levels.index(value) for _, value in rated),
                annotator=judgement.annotator,
                response_token_ids=token_ids if all(token_ids) else (),
                kind=item.prompt.kind,
                axis=axis,
            )
        )
    return tuple(made)
