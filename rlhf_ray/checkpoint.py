"""The state of a run on disk: written aside, flushed, renamed, verified; older ones go only after that.

A state directory ``step_00000012`` holds whatever the trainer's ranks wrote and ``run.json``: the driver's state, and
the size and checksum of every file. A directory without a ``run.json`` that matches is damaged; the one before it is
used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

STATE_FILE = "run.json"
BLOCK_BYTES = 2**22


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
        final = self.root / f"step_{step:08d}"
        aside = self.root / f".{final.name}"
        for left_over in self.root.glob(".step_*"):
            shutil.rmtree(left_over)
        aside.mkdir(parents=True)
        await write(aside)
        paths = [path for path in sorted(aside.rglob("*")) if path.is_file()]
        files = {str(path.relative_to(aside)): _Content.of(path).as_list() for path in paths}
        (aside / STATE_FILE).write_text(json.dumps({"step": step, "driver": driver, "files": files}))
        _flush([*paths, aside / STATE_FILE, *_folders(aside)])
        if final.exists():  # one that was damaged, or the run would have resumed after it
            shutil.rmtree(final)
        aside.rename(final)
        _flush([self.root])
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


@dataclass(frozen=True)
class _Content:
    """What a file must hold, without holding it."""

    size: int
    checksum: str

    @classmethod
    def of(cls, path: Path) -> _Content:
        digest = xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        return cls(path.stat().st_size, str(digest.hexdigest()))

    def as_list(self) -> list[object]:
        return [self.size, self.checksum]


def _read(directory: Path, *, verify: bool) -> tuple[str, SavedState | None]:
    """The state in ``directory``, or what is wrong with it. ``verify`` reads every file; else sizes are compared."""
    try:
        content = json.loads((directory / STATE_FILE).read_text())
        for name, (size, checksum) in content["files"].items():
            path = directory / name
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes, not {size}", None
            if verify and _Content.of(path).checksum != checksum:
                return f"{name} does not hold what was saved: its checksum differs", None
        return "", SavedState(directory, int(content["step"]), content["driver"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}", None


def _folders(root: Path) -> list[Path]:
    return [root, *(path for path in root.rglob("*") if path.is_dir())]


def _flush(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
