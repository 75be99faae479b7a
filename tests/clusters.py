"""Ray clusters for tests: each with a folder of its own, gone without a trace afterwards."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED_MEMORY = Path("/dev/shm")
CLEAN_UP_S = 15.0


@contextmanager
def short_temp_dir() -> Iterator[Path]:
    """A folder with a name so short that the sockets which Ray makes in it stay under the limit of 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def local_ray(*, num_cpus: int = 8, resources: dict[str, float] | None = None) -> Iterator[None]:
    """Start Ray in this process; its CPUs are tickets for placement, not cores. Nothing may stay in shared memory."""
    import ray

    before = set(SHARED_MEMORY.iterdir())
    with short_temp_dir() as temp_dir:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TMPDIR", str(temp_dir))  # sockets of engines that are killed go with it
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=0,
                resources=resources,
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                runtime_env={"env_vars": {"PYTHONPATH": str(CHECKOUT)}},
                _temp_dir=str(temp_dir),
            )
        try:
            yield
        finally:
            ray.shutdown()
    left = wait_until_nothing_is_left(before)
    assert not left, f"left in shared memory: {sorted(map(str, left))}"


@contextmanager
def ray_nodes(*, head_cpus: float) -> Iterator[Any]:
    """A cluster of several nodes on this machine, its head first; more with ``add_node``. This process joins it."""
    import ray
    from ray.cluster_utils import Cluster

    with short_temp_dir() as temp_dir, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", str(temp_dir))  # where its address is noted
        environment.setenv("TMPDIR", str(temp_dir))
        (temp_dir / "ray").mkdir()
        head = {"num_cpus": head_cpus, "temp_dir": str(temp_dir / "ray"), "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=nodes.address, runtime_env={"env_vars": {"PYTHONPATH": str(CHECKOUT)}})
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


def wait_until_nothing_is_left(before: set[Path]) -> set[Path]:
    """Return the files in shared memory that are new and that no process uses, after some seconds of patience."""
    deadline = time.monotonic() + CLEAN_UP_S
    while True:
        used, new = files_in_use(), set(SHARED_MEMORY.iterdir()) - before
        left = {path for path in new if not is_in(path, used)}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def is_in(path: Path, files: set[int]) -> bool:
    """Whether the file is one of ``files``, by inode. One that has just gone is nobody's leftover either."""
    try:
        return path.stat().st_ino in files
    except FileNotFoundError:
        return True


def files_in_use() -> set[int]:
    """Return the inodes of shared memory that some process has open or mapped: another run's, not what ours left.

    By inode, since a semaphore is mapped under a name that it had only while it was made.
    """
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "maps").read_text().splitlines()
            found |= {int(line.split(maxsplit=5)[4]) for line in lines if f" {SHARED_MEMORY}/" in line}
            links = [link for link in (process / "fd").iterdir() if str(link.readlink()).startswith(str(SHARED_MEMORY))]
            found |= {link.stat().st_ino for link in links}
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return found
