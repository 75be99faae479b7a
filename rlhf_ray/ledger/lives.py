"""From events to lives: who was there from when to when, and what each has said of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.data.jsonl import read_jsonl
from rlhf_ray.errors import DataError
from rlhf_ray.ledger.accounts import DRIVER, Account
from rlhf_ray.ledger.record import LEDGER_FILE, Event, How
from rlhf_ray.ledger.spans import Books, Span, Stretch


@dataclass
class Life:
    """One process, from its order to its end, by the driver's clock. One name may have several lives."""

    worker: str
    role: str
    gpus: float
    begun: float
    restart: bool = False
    ended: float = 0.0
    how: How = "lost"
    books: list[Books] = field(default_factory=list)
    rests: list[Stretch] = field(default_factory=list)
    rests_since: float | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    def goes_to_rest(self, at: float) -> None:
        """Nothing changes for one that rests."""
        if self.rests_since is None:
            self.rests_since = at

    def wakes(self, at: float) -> None:
        if self.rests_since is not None:
            self.rests.append((self.rests_since, at))
            self.rests_since = None

    def ends(self, at: float, how: How) -> None:
        self.wakes(at)
        self.ended, self.how = at, how


@dataclass(frozen=True)
class During:
    """The driver's word on a stretch of time: all of it, of one role or of every one, goes to one account."""

    account: Account
    role: str
    begun: float
    ended: float


@dataclass(frozen=True)
class Step:
    """A step of PPO. Tokens: ``sampled`` of responses, ``trained`` of prompts and responses, epochs counted once.

    ``flops`` are operations by account; ``device`` names the trainer's accelerator. Both may be unknown.
    """

    begun: float
    ended: float
    prompts: int
    sampled: int
    discarded: int
    trained: int
    sync_bytes: float = 0.0
    flops: Mapping[str, float] = field(default_factory=dict)
    device: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    @property
    def useful_share(self) -> float:
        return 1.0 - self.discarded / self.sampled if self.sampled else 1.0


@dataclass
class Story:
    """All that a ledger holds. Stages are (name, begun)."""

    lives: list[Life] = field(default_factory=list)
    during: list[During] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    stages: list[tuple[str, float]] = field(default_factory=list)


def told(events: Iterable[Event]) -> Story:
    """What the events say. Whoever was there when a run was killed ends with the last thing that is known of it."""
    story, there = Story(), dict[str, Life]()
    last = 0.0
    for event in events:
        kind = event["event"]
        if kind == "begins" and event["worker"] == DRIVER:
            _cut_off(there, last)
        last = max(last, event["at"] if "at" in event else event.get("ended", 0.0))
        if kind == "begins":
            life = Life(event["worker"], event["role"], event["gpus"], event["at"], event["restart"])
            story.lives.append(life)
            there[life.worker] = life
        elif kind == "books" and (life_of := there.get(event["worker"])) is not None:
            spans = tuple(Span(Account(name), begun, ended) for name, begun, ended in event["spans"])
            life_of.books.append(Books(event["since"], event["until"], spans))
            last = max(last, event["until"])
        elif kind == "rests" and event["worker"] in there:
            there[event["worker"]].goes_to_rest(event["at"])
        elif kind == "wakes" and event["worker"] in there:
            there[event["worker"]].wakes(event["at"])
        elif kind == "ends" and event["worker"] in there:
            there.pop(event["worker"]).ends(event["at"], event["how"])
        elif kind == "during":
            story.during.append(During(Account(event["account"]), event["role"], event["begun"], event["ended"]))
        elif kind == "step":
            story.steps.append(Step(**{name: value for name, value in event.items() if name != "event"}))
        elif kind == "stage":
            story.stages.append((event["name"], event["at"]))
    _cut_off(there, last)
    return story


def _cut_off(there: dict[str, Life], last: float) -> None:
    for life in there.values():
        life.ends(max(last, life.begun), "closed" if life.worker == DRIVER else "lost")
    there.clear()


def read_story(directory: Path) -> Story | None:
    """The story of the run in ``directory``; None where it kept no ledger. DataError where its file is damaged."""
    path = directory / LEDGER_FILE
    if not path.is_file():
        return None
    try:
        return told(record.value for record in read_jsonl(path))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no ledger ({error!r}); delete it, and the run goes on without what it knew"
        ) from error
