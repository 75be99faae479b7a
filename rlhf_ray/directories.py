"""Directories that are whole or not there: written aside, flushed, renamed, and verified when they are read.

A directory is whole when it holds a manifest, a JSON file with the size and checksum of every other file in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from rlhf_ray.errors import RlhfError

BLOCK_BYTES = 2**22


class NotWholeError(RlhfError):
    """A directory does not hold what its manifest says, or has none."""


@dataclass(frozen=True)
class FileContent:
    """What a file must hold, without holding it."""

    size: int
    checksum: str

    @classmethod
    def of(cls, path: Path) -> FileContent:
        digest = xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        return cls(path.stat().st_size, str(digest.hexdigest()))

    def problem(self, path: Path, *, verify: bool) -> str:
        """What is wrong with the file at ``path``, or nothing; without ``verify`` only its size is looked at."""
        found = path.stat().st_size
        if found != self.size:
            return f"{path.name} has {found} bytes, not {self.size}"
        if verify and FileContent.of(path).checksum != self.checksum:
            return f"{path.name} does not hold what was saved: its checksum differs"
        return ""


def begin(final: Path) -> Path:
    """An empty directory beside ``final``, to write into; what an earlier attempt left there is gone."""
    aside = final.with_name(f".{final.name}")
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    return aside


def complete(aside: Path, final: Path, *, manifest: str, content: Mapping[str, object] | None = None) -> int:
    """Write the manifest, with ``content`` beside the files, and give ``aside`` its name; the bytes of all files."""
    paths = [path for path in sorted(aside.rglob("*")) if path.is_file()]
    contents = {str(path.relative_to(aside)): FileContent.of(path) for path in paths}
    files = {name: [found.size, found.checksum] for name, found in contents.items()}
    (aside / manifest).write_text(json.dumps({**(content or {}), "files": files}))
    folders = [aside, *(path for path in aside.rglob("*") if path.is_dir())]
    flush([*paths, aside / manifest, *folders])
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():  # one that was damaged, or of an attempt that is being done again
        final.rename(replaced)
    aside.rename(final)
    flush([final.parent])
    shutil.rmtree(replaced, ignore_errors=True)
    return sum(found.size for found in contents.values()) + (final / manifest).stat().st_size


def read_manifest(directory: Path, *, manifest: str, verify: bool) -> tuple[dict[str, FileContent], dict[str, Any]]:
    """The files of a whole directory and what else its manifest says; ``verify`` reads every file, else sizes count.

    Raises NotWholeError, which says what is missing or differs.
    """
    try:
        content = json.loads((directory / manifest).read_text())
        files = {name: FileContent(int(size), str(checksum)) for name, (size, checksum) in content.pop("files").items()}
        problems = [wanted.problem(directory / name, verify=verify) for name, wanted in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotWholeError(f"{type(error).__name__}: {error}") from error
    if found := [problem for problem in problems if problem]:
        raise NotWholeError(found[0])
    return files, content


def flush(paths: Iterable[Path]) -> None:
    """Bring files and folders to the disk: without it a power cut can undo a rename."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
