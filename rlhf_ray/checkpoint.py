"""The state of a run on disk: written aside, flushed, renamed, verified; older ones go only after that.

A state directory ``step_00000012`` holds whatever the trainer's ranks wrote and ``run.json``: the driver's state, and
the size and checksum of every file. A directory without a ``run.json`` that matches is damaged; the one before it is
used.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.directories import NotWholeError, begin, complete, read_manifest

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
        if keep < 1:
            raise ValueError(f"keep ({keep}) must be at least 1, or a run would have no state to go back to")
        self.root = root
        self.keep = keep

    async def save(
        self, step: int, driver: Mapping[str, object], write: Callable[[Path], Awaitable[None]]
    ) -> SavedState:
        """Let ``write(directory)`` write the trainer's part, then make the state complete and drop what is too old."""
        for left_over in self.root.glob(".step_*"):
            shutil.rmtree(left_over)
        final = self.root / f"step_{step:08d}"
        aside = begin(final)
        await write(aside)
        complete(aside, final, manifest=STATE_FILE, content={"step": step, "driver": driver})
        self._rotate()
        return SavedState(final, step, driver)

    def latest(self) -> tuple[SavedState | None, list[str]]:
        """The newest complete state, or None; and a warning for each newer one that is damaged."""
        warnings: list[str] = []
        for directory in self._newest_first():
            problem, state = _read(directory, verify=True)
            if state is not None:
                return state, warnings
            warnings.append(f"checkpoint {directory} is damaged ({problem}) and is not used")
        return None, warnings

    def _rotate(self) -> None:
        """Keep the newest ``keep`` whole states. Damaged ones do not count, and go."""
        whole = [directory for directory in self._newest_first() if _read(directory, verify=False)[1] is not None]
        for directory in set(self._newest_first()) - set(whole[: self.keep]):
            shutil.rmtree(directory)

    def _newest_first(self) -> list[Path]:
        return sorted(self.root.glob("step_*"), reverse=True)


def _read(directory: Path, *, verify: bool) -> tuple[str, SavedState | None]:
    """The state in ``directory``, or what is wrong with it. ``verify`` reads every file; else sizes are compared."""
    try:
        _, content = read_manifest(directory, manifest=STATE_FILE, verify=verify)
        return "", SavedState(directory, int(content["step"]), content["driver"])
    except NotWholeError as error:
        return str(error), None
    except (ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}", None
