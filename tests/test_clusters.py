"""The clusters that tests use do what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import clusters


@pytest.mark.usefixtures("ray_cluster")
def test_a_test_s_cluster_runs_our_code_in_its_workers() -> None:
    import ray

    @ray.remote
    def where_ours_is() -> str:
        import rlhf_ray

        return str(Path(rlhf_ray.__file__).parent.parent)

    assert ray.get(where_ours_is.remote(), timeout=60) == str(clusters.CHECKOUT)


def test_what_a_run_leaves_in_shared_memory_is_told_from_what_another_still_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clusters, "CLEAN_UP_S", 0.0)
    before = set(clusters.SHARED_MEMORY.iterdir())
    path = clusters.SHARED_MEMORY / "rlhf-ray-test-of-leftovers"
    path.write_bytes(b"weights")
    try:
        assert path in clusters.wait_until_nothing_is_left(before)
        program = f"import sys; f = open({str(path)!r}); print('open', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
            assert user.stdout is not None
            user.stdout.readline()
            assert path not in clusters.wait_until_nothing_is_left(before)
    finally:
        path.unlink()


def test_a_semaphore_that_somebody_has_is_in_use_though_it_was_mapped_under_another_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clusters, "CLEAN_UP_S", 0.0)
    before = set(clusters.SHARED_MEMORY.iterdir())
    program = (
        "import multiprocessing as m, sys; s = m.get_context('spawn').Lock(); print(s._semlock.name, flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        name = user.stdout.readline().decode().strip().lstrip("/")
        semaphore = clusters.SHARED_MEMORY / f"sem.{name}"
        assert semaphore.exists()
        assert semaphore not in clusters.wait_until_nothing_is_left(before)
