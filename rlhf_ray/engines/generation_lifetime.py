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
from pathlib import Path

from tqdm import tqdm

OWNER_VARIABLE = "RLHF_RAY_ENGINE_OWNER"
SHARED_MEMORY = Path("/dev/shm")


def claim_ownership() -> None:
    """Make this process the owner of the engines that it starts from now on."""
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def make_no_semaphores() -> None:
    """Give progress bars a lock of this process: tqdm's own is a named semaphore, left where an engine is killed."""
    tqdm.set_lock(threading.RLock())


def end_with_owner() -> None:
    """End this process when the owner ends, and before it the engine process that stands between the two, if any.

    Ends too when that engine process is gone, and takes the names of its semaphores out of shared memory.

    Does nothing in the owner itself, or where nobody claimed ownership.
    """
    owner = int(os.environ.get(OWNER_VARIABLE, os.getpid()))
    if owner == os.getpid():
        return
    watch = threading.Thread(target=_watch, args=(owner, os.getppid()), name="engine-owner-watch", daemon=True)
    watch.start()


def semaphores_of(pid: int) -> set[int]:
    """Return the inodes of the named semaphores that a process has open; none where it is gone or another user's.

    By inode: a semaphore is mapped under a name that it had only while it was made.
    """
    try:
        mapped = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    except OSError:
        return set()
    return {int(fields[4]) for fields in mapped if len(fields) > 5 and fields[5].startswith(f"{SHARED_MEMORY}/")}


def remove_semaphores(inodes: set[int]) -> None:
    """Remove the names of semaphores, which only a process that ends in peace would take out of shared memory."""
    for file in SHARED_MEMORY.glob("sem.mp-*"):
        with suppress(FileNotFoundError):
            if file.stat().st_ino in inodes:
                file.unlink()


def _watch(owner: int, parent: int) -> None:
    # Of the engine process between: Ray may kill it a moment before its owner, and then nobody can ask it any more.
    semaphores = semaphores_of(parent) if parent != owner else set()
    processes = [descriptor for pid in {owner, parent} if (descriptor := _pidfd(pid)) is not None]
    if len(processes) == len({owner, parent}):  # else one is gone already
        poll = select.poll()
        for descriptor in processes:
            poll.register(descriptor, select.POLLIN)
        poll.poll()
    remove_semaphores(semaphores | semaphores_of(os.getpid()))
    # Not SIGTERM first: an interpreter that is asked to exit stops this thread and may then wait for ever.
    if parent != owner:
        with suppress(ProcessLookupError):
            os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
