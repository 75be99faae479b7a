"""How a person reaches a run that is under way: two small files in its directory.

The run writes ``status.json`` every few seconds; a command lays ``control.json`` beside it, and the run says in its
next status that it has followed. Both are written aside and renamed, so that nobody reads half a file. It works from
any process that sees the run's directory: on the same machine, or over a shared file system.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.errors import ConfigError, RlhfError

STATUS_FILE = "status.json"
CONTROL_FILE = "control.json"
WRITE_EVERY_S = 2.0
ALIVE_WITHIN_S = 60.0  # of the last status: a busy file system, and clocks of machines that differ a little


class NotAliveError(RlhfError):
    """The run does not write its status any more, or never has."""


@dataclass(frozen=True)
class Status:
    """What a run last said of itself, ``age_s`` seconds ago by this machine's clock."""

    content: Mapping[str, Any]
    age_s: float

    @property
    def is_alive(self) -> bool:
        return not self.content.get("ended") and self.age_s <= ALIVE_WITHIN_S


def read_status(directory: Path, now: Callable[[], float] = time.time) -> Status:
    """Raises ConfigError for a directory in which no run has ever said anything."""
    path = directory / STATUS_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            "RUN", str(directory), f"holds no {STATUS_FILE}", "give the output_dir of a run that has been started"
        ) from None
    return Status(content, max(0.0, now() - float(content["written"])))


def require_alive(directory: Path, now: Callable[[], float] = time.time) -> Status:
    """Raises NotAliveError for a run that has ended or fallen silent."""
    status = read_status(directory, now)
    if status.content.get("ended"):
        raise NotAliveError(f"the run in {directory} has ended: {status.content['ended']}; start it again to go on")
    if not status.is_alive:
        raise NotAliveError(
            f"the run in {directory} is not alive: its last sign of life is {status.age_s:.0f} s old, in phase "
            f"{status.content.get('phase', '?')}; the same command that began it goes on where it stopped"
        )
    return status


def ask_for(directory: Path, wanted: Mapping[str, int]) -> str:
    """Ask a living run for other sizes, by role; the number of the request. Raises NotAliveError."""
    require_alive(directory)
    request = uuid.uuid4().hex
    write_whole(directory / CONTROL_FILE, {"request": request, "wanted": dict(wanted)})
    return request


def wait_until_followed(
    directory: Path, request: str, *, timeout_s: float, sleep: Callable[[float], None] = time.sleep
) -> Status:
    """The first status that answers ``request``. Raises what the run refused it with, or NotAliveError."""
    deadline = time.monotonic() + timeout_s
    while True:
        status = require_alive(directory)
        answer = status.content.get("control") or {}
        if answer.get("request") == request:
            if answer.get("refused"):
                raise RlhfError(f"the run refuses: {answer['refused']}")
            return status
        if time.monotonic() > deadline:
            raise NotAliveError(f"the run in {directory} has not followed within {timeout_s:g} s; see rlhf-ray status")
        sleep(0.2)


class ControlDesk:
    """The run's side. ``resize(role, count)`` is called for each size that is asked for, once a request."""

    def __init__(self, directory: Path, resize: Callable[[str, int], None]) -> None:
        self._path = directory / CONTROL_FILE
        self._resize = resize
        self._path.unlink(missing_ok=True)  # what an earlier run was asked for
        self.answer: dict[str, Any] = {}

    def look(self) -> None:
        """Follow a request that is new."""
        try:
            asked = json.loads(self._path.read_text())
            request, wanted = str(asked["request"]), {str(k): int(v) for k, v in asked["wanted"].items()}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # not written by us
        if request == self.answer.get("request"):
            return
        self.answer = {"request": request, "wanted": wanted}
        try:
            for role, count in wanted.items():
                self._resize(role, count)
        except RlhfError as error:
            self.answer["refused"] = str(error)


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON aside and rename it, so that a reader sees the old or the new."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content))
    aside.replace(path)
