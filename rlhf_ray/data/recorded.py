"""What tasks over recorded data have in common: files at the door, prompt identity, the split by prompt, lineage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.records import Message


def require_file(path: Path, *, field: str, remedy: str) -> Path:
    """Return ``path``, or raise ConfigError that names ``field`` where no such file exists."""
    if not path.is_file():
        raise ConfigError(field, str(path), "must be a file that exists", f"{remedy} (looked from {Path.cwd()})")
    return path


def require_fraction(value: float, *, field: str) -> None:
    if not 0.0 <= value < 1.0:
        raise ConfigError(field, value, "must be in [0, 1)", "try 0.1")


def prompt_id_of(messages: Sequence[Message]) -> str:
    """Return an identity that depends on the conversation alone, so equal prompts of different files share it."""
    return digest((message.role, message.content) for message in messages)[:16]


def is_heldout(prompt_id: str, *, seed: int, fraction: float) -> bool:
    """Decide by a hash of the prompt: rows that share one fall on one side, whatever file and order they come in."""
    bucket = int(digest([seed, prompt_id])[:16], 16) / 16.0**16
    return bucket < fraction


def digest(parts: Iterable[object]) -> str:
    """Return a hex sha256 of the parts' representations, in order."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(repr(part).encode("utf-8", "backslashreplace"))
        sha.update(b"\0")
    return sha.hexdigest()


def no_annotators(task: str) -> DataError:
    """The error of :meth:`Task.rank` where judgements are recorded."""
    return DataError(
        f"{task} has recorded judgements only, nobody ranks new responses (has_annotators is False); use rankings()"
    )
