"""Who did what when: stages one after another, the phases of every step by who does them, and the fleet now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from rlhf_ray.errors import DataError
from rlhf_ray.metrics.report_tables import step_phases
from rlhf_ray.pipeline.phases import PHASES_FILE
from rlhf_ray.viewing.run import Run

LANES = {
    "generators": ("generate", "evaluate"),
    "frozen servers": ("score",),
    "trainer": ("update",),
    "weight sync": ("sync",),
    "disk": ("save",),
}
WIDTH, LANE, LEFT = 1000, 26, 110
STEPS = 20  # on one page


@dataclass(frozen=True)
class Began:
    """A line of ``phases.jsonl``."""

    at: float
    step: int
    phase: str


@dataclass(frozen=True)
class Span:
    """A phase in the picture. ``tone`` numbers the phase, for its colour."""

    x: float
    y: int
    width: float
    tone: int
    said: str


@dataclass(frozen=True)
class Gantt:
    """``lanes`` are (name, y); ``steps`` are (x, label) where a step begins."""

    spans: tuple[Span, ...]
    lanes: tuple[tuple[str, int], ...]
    steps: tuple[tuple[float, str], ...]
    width: int
    height: int
    seconds: float
    first: int
    last: int
    newest: int


@dataclass(frozen=True)
class Share:
    phase: str
    tone: int
    seconds: float
    share: float


@dataclass(frozen=True)
class StageSpan:
    place: str
    began: str
    finished: str
    seconds: float
    x: float
    width: float


def parse_phase(path: Path, number: int, line: str) -> Began:
    try:
        said = json.loads(line)
        return Began(float(said["at"]), int(said["step"]), str(said["phase"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}:{number} is no phase ({error})") from error


def places(run: Run) -> list[str]:
    """The stages whose phases are known."""
    return run.stages_with(PHASES_FILE)


def gantt(run: Run, place: str, first: int | None = None) -> Gantt | None:
    """The phases of STEPS steps from ``first`` on, or of the newest; None where none is known."""
    began: Sequence[Began] = run.lines(run.root / place / PHASES_FILE, parse_phase)
    if len(began) < 2:
        return None
    newest = max(each.step for each in began)
    first = max(0, newest - STEPS + 1) if first is None else max(0, min(first, newest))
    last = min(newest, first + STEPS - 1)
    spans = [(one, two.at) for one, two in pairwise(began) if two.phase != "start"]
    shown = [(one, end) for one, end in spans if first <= one.step <= last]
    if not shown:
        return None
    start, stop = shown[0][0].at, max(end for _, end in shown)
    scale = (WIDTH - LEFT) / max(stop - start, 1e-9)
    rows = {phase: number for number, phases in enumerate(LANES.values()) for phase in phases}
    drawn = []
    for one, end in shown:
        if one.phase in rows:
            said = f"step {one.step}: {one.phase}, {end - one.at:.2f} s"
            x, width = LEFT + scale * (one.at - start), max(1.0, scale * (end - one.at))
            drawn.append(Span(round(x, 1), LANE * rows[one.phase] + 4, round(width, 1), tone(one.phase), said))
    marks = {one.step: one.at for one, _ in reversed(shown)}
    every = max(1, len(marks) // 10)
    steps = tuple((round(LEFT + scale * (at - start), 1), str(step)) for step, at in sorted(marks.items())[::every])
    lanes = tuple((name, LANE * number + 18) for number, name in enumerate(LANES))
    height = LANE * len(LANES) + 20
    return Gantt(tuple(drawn), lanes, steps, WIDTH, height, stop - start, first, last, newest)


def tone(phase: str) -> int:
    every = [each for phases in LANES.values() for each in phases]
    return every.index(phase) if phase in every else len(every)


def shares(run: Run, place: str) -> list[Share]:
    """What a step's time goes into, mean of all steps."""
    found = step_phases(run.metrics(place))
    whole = sum(found.values()) or 1.0
    return [Share(phase, tone(phase), seconds, seconds / whole) for phase, seconds in found.items()]


def stage_spans(run: Run) -> list[StageSpan]:
    """The finished stages in time; one that was interrupted seems to have begun later than it did."""
    timed = []
    for record in run.artefacts():
        try:
            end = datetime.fromisoformat(record.finished).timestamp()
        except (ValueError, OverflowError, OSError):
            continue
        timed.append((record, end - record.seconds, end))
    if not timed:
        return []
    start, stop = min(begin for _, begin, _ in timed), max(end for _, _, end in timed)
    scale = WIDTH / max(stop - start, 1e-9)
    return [
        StageSpan(
            record.place,
            datetime.fromtimestamp(begin).isoformat(" ", "seconds"),
            datetime.fromtimestamp(end).isoformat(" ", "seconds"),
            record.seconds,
            round(scale * (begin - start), 1),
            max(2.0, round(scale * (end - begin), 1)),
        )
        for record, begin, end in sorted(timed, key=lambda each: each[1])
    ]
