"""A killed owner takes its engines along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ray.engines.generation_lifetime import SHARED_MEMORY

ROOT = Path(__file__).parents[2]
WORKER = (
    "import os, time; from rlhf_ray.engines.generation_lifetime import end_with_owner\n"
    "end_with_owner(); print(os.getpid(), flush=True); time.sleep(60)"
)
ENGINE = (
    f"import os, subprocess, sys\nprint(os.getpid(), flush=True); subprocess.run([sys.executable, '-c', {WORKER!r}])"
)


def owner(child: str) -> str:
    return (
        "import subprocess, sys; from rlhf_ray.engines.generation_lifetime import claim_ownership, end_with_owner\n"
        f"claim_ownership(); end_with_owner(); subprocess.run([sys.executable, '-c', {child!r}])"
    )


LOCKED_ENGINE = (
    "import multiprocessing, os, subprocess, sys\n"
    "lock = multiprocessing.get_context('spawn').Lock()\n"
    "print(os.getpid(), flush=True); print('sem.' + lock._semlock.name.lstrip('/'), flush=True)\n"
    f"subprocess.run([sys.executable, '-c', {WORKER!r}])"
)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(("child", "processes"), [(WORKER, 1), (ENGINE, 2)])
def test_every_process_of_an_engine_ends_with_its_killed_owner(child: str, processes: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", owner(child)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(processes)]
    assert all(is_running(pid) for pid in pids)
    process.kill()
    process.communicate()
    wait_until_gone(pids)
    assert not any(is_running(pid) for pid in pids)


@pytest.mark.parametrize("first", ["engine", "owner"])
def test_the_semaphores_of_a_killed_engine_are_removed_whoever_dies_first(first: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", owner(LOCKED_ENGINE)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    engine = int(process.stdout.readline())
    semaphore = SHARED_MEMORY / process.stdout.readline().strip()
    worker = int(process.stdout.readline())
    assert semaphore.exists()
    tracker = next(pid for pid in children_of(engine) if pid != worker)
    time.sleep(0.2)  # the worker's watch begins
    os.kill(tracker, signal.SIGKILL)  # Python's own tracker of semaphores, which Ray ends with the engine
    os.kill({"engine": engine, "owner": process.pid}[first], signal.SIGKILL)
    process.communicate()
    wait_until_gone([engine, worker])
    assert not is_running(engine)
    assert not is_running(worker)
    assert not semaphore.exists()


def test_a_process_that_nobody_owns_runs_on() -> None:
    program = "from rlhf_ray.engines.generation_lifetime import end_with_owner; end_with_owner(); print('alive')"
    environment = {name: value for name, value in os.environ.items() if name != "RLHF_RAY_ENGINE_OWNER"}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert answer.stdout == "alive\n"


def test_a_semaphore_that_is_open_loses_its_name_and_works_on() -> None:
    program = (
        "import multiprocessing, os\n"
        "from rlhf_ray.engines.generation_lifetime import SHARED_MEMORY, remove_semaphores, semaphores_of\n"
        "lock = multiprocessing.get_context('spawn').Lock()\n"  # one that a spawned process may open by its name
        "path = SHARED_MEMORY / ('sem.' + lock._semlock.name.lstrip('/'))\n"
        "before = path.exists(); remove_semaphores(semaphores_of(os.getpid()))\n"
        "print(before, path.exists(), lock.acquire(timeout=1), flush=True); os._exit(0)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert answer.stdout == "True False True\n"
