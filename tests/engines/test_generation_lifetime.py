"""A killed owner takes its engines along."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("child", "processes"), [(WORKER, 1), (ENGINE, 2)])
def test_every_process_of_an_engine_ends_with_its_killed_owner(child: str, processes: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", owner(child)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(processes)]
    assert all(is_running(pid) for pid in pids)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_running(pid) for pid in pids)


def test_a_process_that_nobody_owns_runs_on() -> None:
    program = "from rlhf_ray.engines.generation_lifetime import end_with_owner; end_with_owner(); print('alive')"
    environment = {name: value for name, value in os.environ.items() if name != "RLHF_RAY_ENGINE_OWNER"}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert answer.stdout == "alive\n"
