"""JSON Lines on disk: one object a line, read with the line in every error, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias, cast

from rlhf_ray.errors import DataError

JsonObject: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class Record:
    """One object of a file. ``where`` names its place as people look for it: ``file:line``."""

    value: JsonObject
    where: str


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield the objects of a ``.jsonl`` or ``.jsonl.gz`` file in order; blank lines are skipped.

    Raises DataError, with file and 1-based line, for a missing file, broken gzip, wrong encoding, and for a line that
    is not one JSON object.
    """
    for number, line in _lines(path):
        where = f"{path}:{number}"
        text = decode(line, where)
        if text.strip():
            yield Record(parse_object(text, where), where)


def write_jsonl(path: Path, objects: Iterable[JsonObject]) -> int:
    """Write ``objects`` one a line (gzip where the name ends in .gz) and return how many.

    The file appears complete or not at all: it is written aside, flushed to disk and renamed. Equal objects give equal
    bytes, compressed or not. Raises DataError for a value that JSON cannot hold (NaN and infinity included).
    """
    count = 0
    with _replaced(path) as file:
        for count, value in enumerate(objects, start=1):
            file.write(_line(value, f"{path}:{count}"))
    return count


def cut_half_line(path: Path) -> None:
    """Cut off what stands behind the last line break of a file that is appended to; do nothing where there is none."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def read_bytes(path: Path) -> bytes:
    """Return the whole file, decompressed where its name ends in .gz; DataError where that is not possible."""
    return b"".join(line for _, line in _lines(path))


def whole_letters(text: str) -> str:
    """The text with question marks for halves of letters, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error


def parse_object(text: str, where: str) -> JsonObject:
    """Parse one JSON object; DataError names ``where`` otherwise."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); write one JSON object a line"
        ) from error
    return as_object(value, where)


def as_object(value: object, where: str) -> JsonObject:
    if not isinstance(value, dict):
        raise DataError(f'{where}: must be an object like {{"prompt": "..."}}, found {type(value).__name__}')
    return cast(JsonObject, value)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path, relative to {Path.cwd()}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}:{number + 1}: broken gzip ({error}); copy or compress the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _line(value: JsonObject, where: str) -> bytes:
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: cannot be written as JSON ({error})") from error


@contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside ``path`` that takes its place when the block ends well and vanishes when it does not."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                    yield cast(IO[bytes], packed)
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    # Without this a power cut can undo the rename.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
