"""Files that grow by lines while they are read: only what is new is parsed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from rlhf_ray.errors import DataError

T = TypeVar("T")
REMEMBERED = 64


class Tail(Generic[T]):
    """What the lines of a file say. ``parse`` gets the file, a line's number from 1, the line; it may raise DataError.

    A last line without its end is still being written and waits. A file that was written anew is read from its start.
    ``problem`` tells of the first line that could not be understood; such lines are left out.
    """

    def __init__(self, path: Path, parse: Callable[[Path, int, str], T]) -> None:
        self.path, self.problem = path, ""
        self._parse, self._lock = parse, Lock()
        self._records: list[T] = []
        self._end, self._number = 0, 0
        self._last = b""  # the end of what was read: whether the file is still the one that it was

    def records(self) -> tuple[T, ...]:
        """Everything that the file says now; nothing where there is no file."""
        with self._lock:
            try:
                self._read()
            except OSError as error:
                self._forget()
                if not isinstance(error, FileNotFoundError):
                    self.problem = f"{self.path} cannot be read ({error.strerror})"
            return tuple(self._records)

    def _read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(max(0, self._end - REMEMBERED))
            if file.read(self._end - file.tell()) != self._last:
                self._forget()
            file.seek(self._end)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.split(b"\n")[:-1]:
            self._number += 1
            if line.strip():
                self._take(line.decode("utf-8", errors="replace"))
        self._end += len(whole)
        self._last = (self._last + whole)[-REMEMBERED:]

    def _take(self, line: str) -> None:
        try:
            self._records.append(self._parse(self.path, self._number, line))
        except DataError as error:
            self.problem = self.problem or str(error)

    def _forget(self) -> None:
        self._records, self._end, self._number, self._last, self.problem = [], 0, 0, b"", ""
