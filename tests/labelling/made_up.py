"""A store with items to label and a desk on it, whose clock stands still until it is moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.config.labelling import AssignmentConfig, LabellingConfig
from rlhf_ray.feedback.records import Candidate, Item
from rlhf_ray.feedback.schema import open_engine
from rlhf_ray.feedback.store import PreferenceStore, store_url
from rlhf_ray.labelling.desk import Desk
from rlhf_ray.labelling.guidelines import guidelines_of
from rlhf_ray.records import Message, TextPrompt

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'> {{ 7 * 7 }} \u202eabc"
NO_EXTRAS = AssignmentConfig(overlap_every=0, gold_every=0)


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def item(number: int, responses: Sequence[str] = ("one", "two", "three"), gold: tuple[int, ...] = ()) -> Item:
    prompt = TextPrompt(f"p{number}", (Message("user", f"Question {number}"),))
    return Item(prompt, tuple(map(Candidate, responses)), gold)


ITEMS = tuple(item(number) for number in range(4))


@dataclass(frozen=True)
class Office:
    """A desk, its store and its clock."""

    desk: Desk
    store: PreferenceStore
    clock: Clock = field(default_factory=Clock)


@contextmanager
def office(
    path: Path, items: Sequence[Item] = ITEMS, settings: LabellingConfig | None = None, guidelines: str = "# Be kind"
) -> Iterator[Office]:
    """Open a desk on the store in ``path``, which is made where there is none."""
    engine, clock = open_engine(store_url(str(path))), Clock()
    try:
        store = PreferenceStore(engine)
        store.add_items(items)
        settings = settings or LabellingConfig(annotators=("ann", "bob"), assignment=NO_EXTRAS)
        yield Office(Desk(engine, settings, guidelines_of(guidelines), clock=clock), store, clock)
    finally:
        engine.dispose()


def ranked(*ranks: int) -> Mapping[str, str]:
    """The fields of a page with these ranks, by place."""
    return {f"rank-{place}": str(rank) for place, rank in enumerate(ranks)}
