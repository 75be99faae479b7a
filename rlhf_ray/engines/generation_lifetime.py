"""No engine outlives the process that started it.

A process that is killed cannot stop its children: vLLM's engine process would stay, with its memory. So every worker of
an engine watches the engine's owner, and ends with it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress

OWNER_VARIABLE = "RLHF_RAY_ENGINE_OWNER"


def claim_ownership() -> None:
    """Make this process the owner of the engines that it starts from now on."""
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def end_with_owner() -> None:
    """End this process when the owner ends, and before it the engine process that stands between the two, if any.

    Does nothing in the owner itself, or where nobody claimed ownership.
    """
    owner = int(os.environ.get(OWNER_VARIABLE, os.getpid()))
    if owner == os.getpid():
        return
    watch = threading.Thread(target=_watch, args=(owner, os.getppid()), name="engine-owner-watch", daemon=True)
    watch.start()


def _watch(owner: int, parent: int) -> None:
    with suppress(ProcessLookupError):  # it is gone already
        descriptor = os.pidfd_open(owner)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    # Not SIGTERM first: an interpreter that is asked to exit stops this thread and may then wait for ever.
    if parent != owner:
        with suppress(ProcessLookupError):
            os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
