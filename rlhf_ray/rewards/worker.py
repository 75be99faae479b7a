"""The process in which a reward function runs: ``python -m rlhf_ray.rewards.worker FD``. It talks over that descriptor.

It is told a function and its arguments, says whether it could load it, and then answers batches until the other end is
closed. What the function prints goes to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from rlhf_ray.rewards.functions import Failure, Loaded, load


def main(descriptor: int) -> None:
    """Serve until the other end closes."""
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        function = load(*connection.recv())
        if isinstance(function, Failure):
            connection.send(function)
            return
        connection.send(Loaded(function.wants_tokens))
        while True:
            limit_s, texts = connection.recv()
            # Should the one who waits die, nobody would end a function that hangs: the kernel does, GIL or no GIL.
            signal.setitimer(signal.ITIMER_REAL, 2 * limit_s)
            answer = function.grade(texts)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(int(sys.argv[1]))
