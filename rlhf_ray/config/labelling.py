"""The labelling page: whom it asks, what it asks for, where it is served."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive
from rlhf_ray.config.web import WebConfig

MANAGER = "manager"  # the name of the one who watches and does not label
_NAME = re.compile(r"[\w.@+-]{1,64}")
_AXIS = re.compile(r"[A-Za-z][\w -]{0,39}")


@dataclass(frozen=True)
class AssignmentConfig:
    """Who gets which item. 0 turns overlap or questions with known answers off."""

    overlap_every: int = 5  # of the items, every n-th goes to several annotators
    overlap: int = 2  # to so many
    gold_every: int = 10  # of so many questions that an annotator gets, one has a known answer
    lease_minutes: float = 30.0  # an item that somebody has in hand is given to nobody else for so long

    def __post_init__(self) -> None:
        require_not_negative(label__overlap_every=self.overlap_every, label__gold_every=self.gold_every)
        require_positive(label__overlap=self.overlap, label__lease_minutes=self.lease_minutes)
        require(
            self.gold_every != 1,
            field="label.gold_every",
            value=self.gold_every,
            rule="must leave room for items without a known answer",
            remedy="try 10, or 0 for none",
        )


@dataclass(frozen=True)
class ServingConfig(WebConfig):
    """Where the page is served, and how often somebody may ask it."""

    command: ClassVar[str] = "label"
    overheard: ClassVar[str] = "every token and every answer"

    requests_per_minute: int = 300  # of one annotator
    entries_per_minute: int = 10  # wrong links from one address

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            label__requests_per_minute=self.requests_per_minute, label__entries_per_minute=self.entries_per_minute
        )


@dataclass(frozen=True)
class LabellingConfig:
    """Everything that ``rlhf-ray label`` can be told."""

    annotators: tuple[str, ...] = ()
    axes: tuple[str, ...] = ("helpful", "honest", "harmless")
    scale: int = 5  # a rating is one of 1 .. scale
    assignment: AssignmentConfig = AssignmentConfig()
    serving: ServingConfig = ServingConfig()

    def __post_init__(self) -> None:
        require_between(2, 10, label__scale=self.scale)
        for name in self.annotators:
            require(
                bool(_NAME.fullmatch(name)) and name != MANAGER,
                field="label.annotators",
                value=name,
                rule=f"must be letters, digits and . @ + - _, at most 64, and not {MANAGER!r}",
                remedy="choose another name",
            )
        for axis in self.axes:
            require(
                bool(_AXIS.fullmatch(axis)),
                field="label.axes",
                value=axis,
                rule="must be a word or a few",
                remedy="try helpful",
            )
        for field, names in (("label.annotators", self.annotators), ("label.axes", self.axes)):
            require(
                len(set(names)) == len(names), field=field, value=names, rule="must differ", remedy="name each once"
            )
