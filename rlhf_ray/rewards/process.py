"""Reward functions in a process of their own, behind a time limit that holds.

A process and no thread: a thread cannot be ended, and one that hangs in a regular expression keeps the interpreter to
itself, so that even the clock which should stop it would wait.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Graded
from rlhf_ray.rewards.functions import Failure, Loaded
from rlhf_ray.rewards.texts import ResponseText

START_S = 120.0  # a module may import a lot
ALONE = 8  # a response alone may take this part of a batch's time


class FunctionLoadError(RlhfError):
    """A reward function cannot be imported, or not be called with its arguments."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.reason = reason

    def __str__(self) -> str:
        return "reward function {!r} cannot be used: {}".format(*self.args)


class FunctionReward:
    """A function behind a time limit: ``timeout_s`` for a batch, as much again for finding out whose fault it was."""

    def __init__(self, name: str, *, arguments: Mapping[str, Any], timeout_s: float) -> None:
        self._name = name
        self._arguments = dict(arguments)
        self._timeout_s = timeout_s
        self._process: FunctionProcess | None = None
        self.wants_tokens = self._running().wants_tokens

    def grade(self, texts: Sequence[ResponseText]) -> tuple[Graded, ...]:
        """One answer a text. When the call fails each text is tried alone: one bad response fails nobody else's."""
        if not texts:
            return ()
        answer = self._call(texts, self._timeout_s)
        if not isinstance(answer, Failure):
            return tuple(answer)
        if answer.for_all or len(texts) == 1:
            return tuple(Graded(None, failed=answer.reason) for _ in texts)
        deadline = time.monotonic() + self._timeout_s
        return tuple(self._alone(text, deadline) for text in texts)

    def _alone(self, text: ResponseText, deadline: float) -> Graded:
        limit_s = min(self._timeout_s / ALONE, deadline - time.monotonic())
        if limit_s <= 0:
            return Graded(None, failed=f"not tried: its batch took more than twice {self._timeout_s:g} s")
        answer = self._call([text], limit_s)
        return Graded(None, failed=answer.reason) if isinstance(answer, Failure) else answer[0]

    def _call(self, texts: Sequence[ResponseText], limit_s: float) -> list[Graded] | Failure:
        try:
            return self._running().call(texts, limit_s)
        except TimeoutError:
            reason = f"took more than {limit_s:g} s"
        except (EOFError, OSError):
            reason = "its process died"
        self.close()
        return Failure(reason)

    def _running(self) -> FunctionProcess:
        if self._process is None:
            self._process = FunctionProcess(self._name, self._arguments)
        return self._process

    def close(self) -> None:
        """End the process; the next call would start another."""
        if self._process is not None:
            self._process.end()
        self._process = None


class FunctionProcess:
    """One process with the function loaded."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlhf_ray.rewards.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        try:
            answer = self._exchange((name, dict(arguments)), START_S)
        except (EOFError, OSError) as error:
            answer = Failure(f"its process died, or was not ready within {START_S:g} s ({type(error).__name__})")
        if not isinstance(answer, Loaded):
            self.end()
            raise FunctionLoadError(name, answer.reason)
        self.wants_tokens = answer.wants_tokens

    def call(self, texts: Sequence[ResponseText], limit_s: float) -> list[Graded] | Failure:
        """The function's answer. Raises TimeoutError past the limit, EOFError or OSError when the process is gone."""
        answer: list[Graded] | Failure = self._exchange((limit_s, list(texts)), limit_s)
        return answer

    def _exchange(self, message: object, limit_s: float) -> Any:
        self._connection.send(message)
        if not self._connection.poll(limit_s):
            raise TimeoutError
        return self._connection.recv()

    def end(self) -> None:
        """Kill the process, and with it whatever it started."""
        self._connection.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
