"""The state of a run on disk: written aside, flushed, renamed, verified; the old one goes only after that.

A state directory ``step_00012`` holds whatever the trainer's ranks wrote and ``run.json``: the driver's state and the size of
every file. A directory without a ``run.json`` that matches is damaged, and the one before it is used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE_FILE = "run.json"


@dataclass(frozen=True)
class SavedState:
    """A complete state: where it lies, the step it was saved after, and what the driver said then."""

    directory: Path
    step: int
    driver: Mapping[str, Any]


class Checkpoints:
    """The last ``keep`` states of one run."""

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.root = root
        self.keep = keep

    async def save(
        self, step: int, driver: Mapping[str, object], write: Callable[[Path], Awaitable[None]]
    ) -> SavedState:
        """Let ``write(directory)`` write the trainer's part, then make the state complete."""
        self.root.mkdir(parents=True, exist_ok=True)
        final = self.root / f"step_{step:08d}"
        aside = self.root / f".{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        await write(aside)
        files = {str(p.relative_to(aside)): p.stat().st_size for p in sorted(aside.rglob("*")) if p.is_file()}
        _flush([aside / name for name in files])
        (aside / STATE_FILE).write_text(json.dumps({"step": step, "driver": driver, "files": files}))
        _flush([aside / STATE_FILE])
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        self._rotate()
        return SavedState(final, step, driver)

    def latest(self) -> tuple[SavedState | None, list[str]]:
        """The newest complete state, or None; and a warning for each newer one that is damaged."""
        warnings = []
        for directory in sorted(self.root.glob("step_*"), reverse=True):
            problem, state = _read(directory)
            if state is not None:
                return state, warnings
            warnings.append(f"checkpoint {directory} is damaged ({problem}) and is not used")
        return None, warnings

    def _rotate(self) -> None:
        for directory in sorted(self.root.glob("step_*"))[: -self.keep]:
            shutil.rmtree(directory)


def _read(directory: Path) -> tuple[str, SavedState | None]:
    try:
        content = json.loads((directory / STATE_FILE).read_text())
        for name, size in content["files"].items():
            found = (directory / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, not {size}", None
        return "", SavedState(directory, int(content["step"]), content["driver"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error), None


def _flush(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
