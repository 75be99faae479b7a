"""Hears the pulse of every actor; one that has fallen silent is taken for dead, and all say where they are."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from actors.messages import say
from actors.pulse import STACKS
from rlhf_ray.supervision.heartbeats import Heartbeats

BEATS_PER_TIMEOUT = 6
REPLY_S = 2.0  # for actors to say where they are
PROC_FILES = ("status", "wchan", "stack", "syscall")


class Monitor(asyncio.DatagramProtocol):
    """Watches the actors of one scope. ``watch`` and ``forget`` keep it up to date."""

    def __init__(self, timeout_s: float, stacks: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._stacks = stacks
        self._clock = clock
        self._heartbeats = Heartbeats(timeout_s)
        self._actors: dict[str, Any] = {}
        self._origins: dict[str, tuple[int, tuple[str, int]]] = {}  # name -> process, where it sends from
        self._replies: dict[str, str] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        host = ray.util.get_node_ip_address()
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=(host, 0)
        )
        self._task = asyncio.create_task(self._judge())

    def variable(self, name: str) -> str:
        """What the actor ``name`` finds in its environment."""
        if self._transport is None:
            raise RuntimeError("the monitor has not been started")
        host, port = self._transport.get_extra_info("sockname")[:2]
        return json.dumps({"name": name, "host": host, "port": port, "interval_s": self._timeout_s / BEATS_PER_TIMEOUT})

    def watch(self, name: str, actor: Any) -> None:
        self._actors[name] = actor
        self._heartbeats.forget(name)

    def forget(self, name: str) -> None:
        """Its end is wanted, or known."""
        self._actors.pop(name, None)
        self._heartbeats.forget(name)

    def process(self, name: str) -> int | None:
        """The process of an actor that was heard, on its node."""
        return self._origins[name][0] if name in self._origins else None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()

    # ------------------------------------------------------------------------------------------------------ messages
    def datagram_received(self, data: bytes, addr: Any) -> None:
        """A beat, or stacks. Whatever else comes in at this port is not ours."""
        try:
            message = json.loads(data)
            name, process = str(message["name"]), int(message["pid"])
        except (ValueError, KeyError, TypeError):
            return
        if name not in self._actors:
            return
        self._origins[name] = process, addr
        self._heartbeats.heard(name, self._clock())
        if "stacks" in message:
            self._replies[name] = str(message["stacks"])

    async def _judge(self) -> None:
        while True:
            await asyncio.sleep(self._timeout_s / BEATS_PER_TIMEOUT)
            for name, seconds in self._heartbeats.silent(self._clock()).items():
                await self._end(name, seconds)

    async def _end(self, name: str, seconds: float) -> None:
        actor = self._actors[name]
        where = await self.dump(f"{name} silent")
        self.forget(name)
        say(
            f"{name} has given no sign of life for {seconds:.0f} s (faults.heartbeat_timeout_s): it is taken for dead "
            f"and ended; where every actor was: {where}"
        )
        self._kill_here(name)
        await asyncio.to_thread(ray.kill, actor)

    def _kill_here(self, name: str) -> None:
        """On this host the process is ended at once; a stopped one cannot do it when Ray asks."""
        process, address = self._origins[name]
        if address[0] == ray.util.get_node_ip_address():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)

    # -------------------------------------------------------------------------------------------------------- stacks
    async def dump(self, reason: str) -> Path:
        """Write a file with where every actor is, as far as it answers; return its path."""
        self._replies.clear()
        for name, (_, address) in self._origins.items():
            if name in self._actors and self._transport is not None:
                self._transport.sendto(STACKS, address)
        deadline = self._clock() + REPLY_S
        while self._clock() < deadline and not self._actors.keys() <= self._replies.keys():
            await asyncio.sleep(0.05)
        self._stacks.mkdir(parents=True, exist_ok=True)
        path = self._stacks / f"{time.strftime('%Y%m%d-%H%M%S')}-{reason.replace(' ', '-').replace('/', '-')}.txt"
        path.write_text("\n".join(f"==== {name}\n{self._of(name)}\n" for name in sorted(self._actors)))
        return path

    def _of(self, name: str) -> str:
        if name in self._replies:
            return self._replies[name]
        if name not in self._origins:
            return "never heard: still starting, or none of its messages reach this host"
        process, address = self._origins[name]
        if address[0] != ray.util.get_node_ip_address():
            return f"does not answer; it is process {process} of {address[0]}"
        return f"does not answer; what the kernel says of process {process}:\n{kernel_view(process)}"


def kernel_view(process: int) -> str:
    """What /proc tells of a process of this host that cannot speak for itself."""
    lines = []
    for name in PROC_FILES:
        try:
            text = Path("/proc", str(process), name).read_text().strip()
        except OSError as error:
            text = f"cannot be read ({error.strerror})"
        lines.append(f"{name}: {text}")
    return "\n".join(lines)
