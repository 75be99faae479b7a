"""What a stage leaves behind, and whether it may be used again.

A stage's directory holds its files and, once it is done, ``artefact.json``: written last and atomically, so that a
directory without it is unfinished work. The key is a hash of everything the result depends on. A run's directory may be
moved or copied: paths in it are kept relative to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_ray.errors import ConfigError, DataError

ARTEFACT_FILE = "artefact.json"
BEGUN_FILE = "begun.json"
ROOT = "${output_dir}"  # stands for the run's directory in what is written


@dataclass(frozen=True)
class Artefact:
    """A finished stage and its lineage. ``seconds`` is what it took, over all attempts."""

    stage: str
    key: str
    parents: Mapping[str, str]  # stage -> key
    settings: Mapping[str, Any]
    data_hash: str
    code_version: str
    finished: str
    seconds: float
    results: Mapping[str, Any]


def artefact_key(*, stage: str, settings: Mapping[str, Any], data_hash: str, parents: Mapping[str, str]) -> str:
    """Hash of all that the stage's result depends on. 16 hexadecimal digits."""
    content = json.dumps([stage, settings, data_hash, dict(sorted(parents.items()))], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class ArtefactStore:
    """The stages' directories under one run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, stage: str) -> Path:
        return self.root / stage

    def read(self, stage: str) -> Artefact | None:
        """Whatever artefact ``stage`` has left; DataError where the file is damaged."""
        path = self.directory(stage) / ARTEFACT_FILE
        if not path.is_file():
            return None
        try:
            artefact = Artefact(**json.loads(path.read_text()))
            results = {name: self._here(value) for name, value in artefact.results.items()}
        except (ValueError, TypeError, AttributeError) as error:
            remedy = f"delete the directory {path.parent} to do the stage again"
            raise DataError(f"{path}: damaged ({error}); {remedy}") from error
        return replace(artefact, results=results)

    def begin(self, stage: str, key: str, base_key: str = "") -> float:
        """Make the stage's directory ready and return the seconds that earlier attempts at this key took.

        Work of the same key is kept, so that a stage may resume inside, and so is work of the same ``base_key``, the
        key without the settings that only say how far the stage goes; that of any other is removed.
        Raises ConfigError where the directory holds something that no run has put there.
        """
        directory = self.directory(stage)
        earlier = _read_begun(directory / BEGUN_FILE)
        goes_on = earlier.get("key") == key or (base_key and earlier.get("base_key") == base_key)
        if not goes_on and directory.exists():
            self._require_own(directory)
            shutil.rmtree(directory)
            earlier = {}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ARTEFACT_FILE).unlink(missing_ok=True)
        self.note_seconds(stage, key, float(earlier.get("seconds", 0.0)), base_key)
        return float(earlier.get("seconds", 0.0))

    def note_seconds(self, stage: str, key: str, seconds: float, base_key: str = "") -> None:
        """Remember how long the stage has run so far."""
        content = {"key": key, "base_key": base_key, "seconds": seconds}
        write_atomically(self.directory(stage) / BEGUN_FILE, json.dumps(content))

    def base_key(self, stage: str) -> str:
        """The key of the work in the stage's directory without how far it goes; empty where none has begun."""
        return str(_read_begun(self.directory(stage) / BEGUN_FILE).get("base_key", ""))

    def finish(self, artefact: Artefact) -> None:
        """Declare a stage done."""
        path = self.directory(artefact.stage) / ARTEFACT_FILE
        results = {name: self._anywhere(value) for name, value in artefact.results.items()}
        content = asdict(replace(artefact, results=results))
        write_atomically(path, json.dumps(content, indent=2, default=str))

    def _require_own(self, directory: Path) -> None:
        own = (directory / BEGUN_FILE).exists() or (directory / ARTEFACT_FILE).exists()
        if not own and any(directory.iterdir()):
            raise ConfigError(
                "output_dir",
                str(self.root),
                f"holds a directory {directory.name!r} that is not a run's, and a stage of that name would replace it",
                "choose another output_dir",
            )

    def _anywhere(self, value: Any) -> Any:
        return value.replace(str(self.root), ROOT, 1) if _is_below(value, str(self.root)) else value

    def _here(self, value: Any) -> Any:
        return value.replace(ROOT, str(self.root), 1) if _is_below(value, ROOT) else value


def _is_below(value: Any, root: str) -> bool:
    return isinstance(value, str) and value.startswith(f"{root}/")


def _read_begun(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_atomically(path: Path, text: str) -> None:
    """Write aside, flush to disk, rename: the file is whole or as it was."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
