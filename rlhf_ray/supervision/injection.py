"""Faults on purpose, for tests. Off unless the variable RLHF_FAULTS names a directory.

``targets`` in that directory lists functions, one a line as ``role package.module:Class.method``: an actor of that role
wraps them as it starts. A file ``<actor>@<Class.method>``, such as ``trainer 1@TrainingEngine.backward``, arms one of
them: ``kill 3`` in it kills the process at the third call from then on, before the function runs; ``stop`` halts it
(SIGSTOP). What is armed happens once; a line with the time is then added to ``done``.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "RLHF_FAULTS"
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def install(actor: str) -> None:
    """Wrap the targets in this process, where faults are asked for at all."""
    if not (named := os.environ.get(VARIABLE)):
        return
    directory = Path(named)
    for line in (directory / "targets").read_text().splitlines():
        role, target = line.split()
        if actor.split()[0] != role:
            continue
        module, _, path = target.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, _wrapped(getattr(owner, name), directory, f"{actor}@{path}"))


def _wrapped(function: Callable[..., Any], directory: Path, event: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        _reached(directory, event)
        return function(*arguments, **named)

    return call


def _reached(directory: Path, event: str) -> None:
    armed = directory / event
    if not armed.exists():
        return
    action, count = armed.read_text().split()
    if int(count) > 1:
        armed.write_text(f"{action} {int(count) - 1}")
        return
    armed.unlink()
    with (directory / "done").open("a") as done:
        done.write(f"{time.time()} {action} {event}\n")
    os.kill(os.getpid(), SIGNALS[action])
