"""What happens to the workers of a run, written as it happens: ``ledger.jsonl`` in the run's directory.

A line is an event; times are seconds since the epoch by the driver's clock, but those of ``books``, which are by the
clock of the worker. A run that is done again, or goes on, adds to the file.

    {"event": "begins", "worker": "trainer 0", "role": "trainer", "gpus": 0.0, "at": ..., "restart": false}
    {"event": "books", "worker": "trainer 0", "since": ..., "until": ..., "spans": [["policy update", ..., ...], ...]}
    {"event": "rests", "worker": "trainer 0", "at": ...}         also "wakes"
    {"event": "ends", "worker": "trainer 0", "at": ..., "how": "closed"}
    {"event": "during", "account": "evaluation", "role": "", "begun": ..., "ended": ...}
    {"event": "step", "begun": ..., "ended": ..., "prompts": 8, "sampled": 512, "discarded": 0, "trained": 800,
     "sync_bytes": 1e7, "flops": {"policy update": 4e12, ...}, "device": "h100"}
    {"event": "stage", "name": "ppo", "at": ...}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rlhf_ray.data.jsonl import cut_half_line
from rlhf_ray.ledger.accounts import DRIVER, Account
from rlhf_ray.ledger.booking import SteadyClock
from rlhf_ray.ledger.spans import Books

LEDGER_FILE = "ledger.jsonl"
Event: TypeAlias = Mapping[str, Any]
How: TypeAlias = Literal["closed", "lost", "silent"]
"""How a worker ended: its books were heard to the end; its process was gone before; it lived and did not answer."""


class RunLedger:
    """Passes every event to ``write``; the driver's own time begins with it."""

    def __init__(self, write: Callable[[Event], None], clock: Callable[[], float] | None = None) -> None:
        self._write = write
        self._clock = clock or SteadyClock()
        self._roles: dict[str, str] = {}  # of those that have begun and not ended
        self._lost: Counter[str] = Counter()  # by role, those whose place is empty
        self._step_begun: float | None = None
        self.begins(DRIVER, DRIVER)

    def now(self) -> float:
        return self._clock()

    # -------------------------------------------------------------------------------------------------------- workers
    def begins(self, worker: str, role: str, *, gpus: float = 0.0, at: float | None = None) -> None:
        """A process was ordered. In a role that has lost one, it is a restart."""
        restart = self._lost[role] > 0
        self._lost[role] -= restart
        self._roles[worker] = role
        event = {"event": "begins", "worker": worker, "role": role, "gpus": gpus}
        self._write({**event, "at": self.now() if at is None else at, "restart": restart})

    def books(self, worker: str, books: Books) -> None:
        spans = [[str(span.account), round(span.begun, 4), round(span.ended, 4)] for span in books.spans]
        self._write({"event": "books", "worker": worker, "since": books.since, "until": books.until, "spans": spans})

    def rests(self, worker: str) -> None:
        self._write({"event": "rests", "worker": worker, "at": self.now()})

    def wakes(self, worker: str) -> None:
        self._write({"event": "wakes", "worker": worker, "at": self.now()})

    def ends(self, worker: str, how: How) -> None:
        """Nothing happens where it has ended before."""
        if (role := self._roles.pop(worker, None)) is None:
            return
        self._lost[role] += how == "lost"
        self._write({"event": "ends", "worker": worker, "at": self.now(), "how": how})

    # ---------------------------------------------------------------------------------------------------------- driver
    def stage(self, name: str) -> None:
        self._write({"event": "stage", "name": name, "at": self.now()})

    @contextmanager
    def during(self, account: Account, role: str = "") -> Iterator[None]:
        """Whatever the workers, those of ``role`` or all, do or wait for in the block goes to one account."""
        begun = self.now()
        try:
            yield
        finally:
            stretch = {"begun": begun, "ended": self.now()}
            self._write({"event": "during", "account": str(account), "role": role, **stretch})

    def step_begins(self) -> None:
        """Nothing happens where it has begun before."""
        self._step_begun = self._step_begun or self.now()

    def step_ends(
        self,
        *,
        prompts: int,
        sampled: int,
        discarded: int,
        trained: int,
        sync_bytes: float = 0.0,
        flops: Mapping[str, float] | None = None,
        device: str = "",
    ) -> None:
        """``discarded`` of the ``sampled`` tokens were of no use; ``trained`` are of prompts and responses.

        ``flops``: operations by account, where they can be counted; ``device``: the trainer's, where it is known.
        """
        begun, self._step_begun = self._step_begun, None
        if begun is not None:
            counts = {"prompts": prompts, "sampled": sampled, "discarded": discarded, "trained": trained}
            work = {"sync_bytes": sync_bytes, "flops": dict(flops or {}), "device": device}
            self._write({"event": "step", "begun": begun, "ended": self.now(), **counts, **work})

    def close(self) -> None:
        """The run ends, and with it whoever is still there."""
        for worker in [name for name in self._roles if name != DRIVER]:
            self.ends(worker, "silent")
        self.ends(DRIVER, "closed")


def nowhere(event: Event) -> None:
    """For those who keep no ledger."""


def into_file(directory: Path) -> Callable[[Event], None]:
    """Append events to the ledger of a run; a disk that is full loses them and nothing else."""
    path = directory / LEDGER_FILE
    cut_half_line(path)

    def write(event: Event) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError:
            with suppress(OSError):
                cut_half_line(path)

    return write
