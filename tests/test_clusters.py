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
