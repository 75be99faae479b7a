"""Where a run is: ``phases.jsonl`` in the stage's directory, a line at the beginning of every phase of every step.

    {"at": 1764190000.123, "step": 12, "phase": "generate"}

``at`` is in seconds since the epoch. Phases are those of the step that is waited for or trained on: generate, score,
update, wait (for a batch that weights must not change under), sync, evaluate and save; and ``start`` when a run begins
or goes on (with the step that it goes on from). A step that is done again is there again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from rlhf_ray.data.jsonl import cut_half_line

PHASES_FILE = "phases.jsonl"


class PhaseTrace:
    """Appends to the file; what was written there before stays, but for a line that a kill left half."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / PHASES_FILE
        cut_half_line(self._path)

    def begin(self, step: int, phase: str) -> None:
        """Note that a phase begins. A disk that is full loses the line and nothing else."""
        line = json.dumps({"at": round(time.time(), 3), "step": step, "phase": phase})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            return
