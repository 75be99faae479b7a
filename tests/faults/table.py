"""The table of the fault matrix: who was hit, when, how long until it was noticed and mended, and how it ended.

A test records its case; the table is printed when the session ends, and written as JSON lines to the file that
``RLHF_RAY_FAULT_TABLE`` names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "RLHF_RAY_FAULT_TABLE"


@dataclass(frozen=True)
class FaultCase:
    """One row. Seconds are counted from the fault; None where nothing was to be noticed or mended."""

    victim: str
    phase: str
    detection_s: float | None
    recovery_s: float | None
    outcome: str


CASES: list[FaultCase] = []


class Stopwatch:
    """Notes when a fault was made, noticed and mended; each the first time only."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}

    def struck(self) -> None:
        self._times.setdefault("struck", time.monotonic())

    def noticed(self) -> None:
        self._times.setdefault("noticed", time.monotonic())

    def recovered(self) -> None:
        self._times.setdefault("recovered", time.monotonic())

    def since_fault(self, what: str) -> float | None:
        if what not in self._times or "struck" not in self._times:
            return None
        return max(0.0, self._times[what] - self._times["struck"])


@contextmanager
def fault_case(victim: str, phase: str, outcome: str) -> Iterator[Stopwatch]:
    """Record a case: ``outcome`` where the block ends well, else that it failed and how."""
    watch, ending = Stopwatch(), outcome
    try:
        yield watch
    except BaseException as error:
        ending = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
        raise
    finally:
        record(FaultCase(victim, phase, watch.since_fault("noticed"), watch.since_fault("recovered"), ending))


def record(case: FaultCase) -> None:
    CASES.append(case)
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(case)) + "\n")


def rendered(cases: list[FaultCase]) -> str:
    """Columns that people can read, one case a line."""
    head = ("victim", "phase", "detected s", "recovered s", "outcome")
    rows = [(c.victim, c.phase, _seconds(c.detection_s), _seconds(c.recovery_s), c.outcome) for c in cases]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
