"""Trainer ranks for tests: processes that have joined one group over gloo and run the functions they are sent.

Starting a rank takes seconds (torch, DeepSpeed), so a group is kept for the whole session; an answer that does not come
in time, or that says a rank is gone, ends the group and the next caller gets a fresh one.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.engines.ranks import RankInfo

START_S = 120.0
ANSWER_S = 120.0


class RankError(AssertionError):
    """What went wrong in a rank, with its traceback."""


class Ranks:
    """``world_size`` processes that stand in one process group."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = ANSWER_S) -> list[Any]:
        """Call ``function(info, *arguments)`` on every rank; return what each answered."""
        try:
            if not self._processes:
                self._start()
            return self._ask((function, arguments), timeout_s)
        except BaseException:
            self.stop()  # ranks that stand at different places of a program cannot be used again
            raise

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        address = f"127.0.0.1:{free_port()}"
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            info = RankInfo(rank=rank, world_size=self.world_size, address=address, device="cpu")
            process = context.Process(target=_serve, args=(theirs, info), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        self._ask((_nothing, ()), START_S)

    def _ask(self, call: tuple[Callable[..., Any], tuple[Any, ...]], timeout_s: float) -> list[Any]:
        deadline = time.monotonic() + timeout_s
        for pipe in self._pipes:
            pipe.send(call)
        answers = [self._answer(rank, pipe, deadline) for rank, pipe in enumerate(self._pipes)]
        if failed := [text for succeeded, text in answers if not succeeded]:
            raise RankError("\n".join(failed))
        return [answer for _, answer in answers]

    def _answer(self, rank: int, pipe: Connection, deadline: float) -> tuple[bool, Any]:
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            return False, f"rank {rank} did not answer in time"
        try:
            answer: tuple[bool, Any] = pipe.recv()
        except EOFError:
            return False, f"rank {rank} is gone"
        return answer

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(timeout=10)
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []


_groups: dict[int, Ranks] = {}


def ranks(world_size: int) -> Ranks:
    """The session's group of that size."""
    return _groups.setdefault(world_size, Ranks(world_size))


def stop_all() -> None:
    for group in _groups.values():
        group.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _nothing(_info: RankInfo) -> None: ...


def _serve(pipe: Connection, info: RankInfo) -> None:
    """The life of a rank: join, then answer until the other end of the pipe is closed."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", OMP_NUM_THREADS="1", DS_LOG_LEVEL="error")
    import torch

    from rlhf_ray.engines.training import join_group

    join_group(info, TrainingConfig(timeout_s=60.0))
    linear = torch.nn.functional.linear
    while True:
        # ZeRO 3 puts another in its place, for good: bfloat16 would be rounded by what a test before this one was.
        torch.nn.functional.linear = linear
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(info, *arguments)))
        except BaseException:  # noqa: BLE001 - the caller sees it, whatever it is
            pipe.send((False, f"rank {info.rank}: {traceback.format_exc()}"))
