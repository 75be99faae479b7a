"""Alarms as they are kept and told: a line of JSON each, and a few loud lines on the console."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.errors import DataError
from rlhf_ray.hacking.alarms import Fired
from rlhf_ray.hacking.evidence import Sample

ALARMS_FILE = "alarms.jsonl"
PAGE = "docs/reward_hacking.md"
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Alarm:
    """What was seen, when, what is done about it, and the responses that show it. ``time``: seconds since the epoch."""

    step: int
    name: str
    metric: str
    value: float
    message: str
    action: str
    samples: tuple[Sample, ...]
    time: float

    @classmethod
    def of(cls, fired: Fired, step: int, samples: Sequence[Sample]) -> Alarm:
        return cls(
            step=step,
            name=fired.name,
            metric=fired.metric,
            value=fired.value,
            message=fired.message,
            action=fired.action,
            samples=tuple(samples),
            time=round(time.time(), 3),
        )

    def told(self) -> str:
        """For the console."""
        lines = [f"!!! ALARM at step {self.step}: {self.name} ({self.action})", f"!!! {self.message}"]
        for sample in self.samples:
            score = "not scored" if sample.score is None else f"score {sample.score:.3g}"
            lines += [f"!!!   {sample.rollout_id}, {score}", f"!!!     {_short(sample.prompt)}"]
            lines.append(f"!!!     -> {_short(sample.response)}")
        return "\n".join([*lines, f"!!! What to do: {PAGE}"])


class AlarmLog:
    """The file of one stage. A resumed run keeps the alarms up to its step: it will raise the later ones again."""

    def __init__(self, directory: Path, resumed_step: int | None) -> None:
        self._path = directory / ALARMS_FILE
        kept = [] if resumed_step is None else [a for a in read_alarms(self._path) if a.step <= resumed_step]
        aside = self._path.with_suffix(".jsonl.tmp")
        aside.write_text("".join(map(_line, kept)), encoding="utf-8")
        os.replace(aside, self._path)

    def write(self, alarm: Alarm) -> None:
        """Append the alarm; a disk that is full is a warning, as the console has it too."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(alarm))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            print(f"warning: {self._path} cannot be written ({error.strerror}); the alarm stands above", flush=True)


def read_alarms(path: Path) -> list[Alarm]:
    """The alarms of a file, in order; none if there is no such file. A torn last line is passed over.

    Raises:
        DataError: a complete line is no alarm; the message holds the file and the line.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def _line(alarm: Alarm) -> str:
    return json.dumps(asdict(alarm)) + "\n"


def _parse(path: Path, number: int, line: str) -> Alarm:
    try:
        content: dict[str, Any] = json.loads(line)
        return Alarm(**{**content, "samples": tuple(Sample(**sample) for sample in content["samples"])})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}:{number} is not an alarm ({error}); delete the line to go on") from error


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} ..."
