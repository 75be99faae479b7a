"""An actor's pulse: a thread that tells the driver, several times a timeout, that the process lives.

It also answers the one question that a busy actor cannot answer by itself: where is every thread of it now?
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import tempfile
import threading
from typing import Any

from rlhf_ray.ledger.booking import BOOKER
from rlhf_ray.ledger.spans import Books
from rlhf_ray.supervision import injection

VARIABLE = "RLHF_PULSE"  # JSON: name, host, port, interval_s
STACKS = b"stacks"
LONGEST_REPLY_BYTES = 48_000  # below the limit of a datagram


class Watched:
    """Base of every actor: its pulse begins before its constructor, which may load a model for minutes."""

    def __new__(cls, *_arguments: Any, **_named: Any) -> Any:
        if given := os.environ.get(VARIABLE):
            settings = json.loads(given)
            threading.Thread(target=_beat, kwargs=settings, daemon=True, name="pulse").start()
            injection.install(settings["name"])
        return super().__new__(cls)

    def books(self) -> Books:
        """What this process did since it was last asked."""
        return BOOKER.closed()


def _beat(name: str, host: str, port: int, interval_s: float) -> None:
    """Send for ever. UDP: what is lost is sent again soon, and nobody waits for anybody."""
    beat = json.dumps({"name": name, "pid": os.getpid()}).encode()
    family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as channel:
        channel.connect((host, port))  # so that nobody but the driver is heard
        channel.settimeout(interval_s)
        while True:
            try:
                channel.send(beat)
                if channel.recv(64) == STACKS:
                    reply = {"name": name, "pid": os.getpid(), "stacks": stacks()}
                    channel.send(json.dumps(reply).encode())
            except OSError:  # nothing asked within the interval; or the driver is gone, and so are we, soon
                threading.Event().wait(interval_s / 10)


def stacks() -> str:
    """Where every thread of this process is, the innermost call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read(LONGEST_REPLY_BYTES).decode(errors="replace")
