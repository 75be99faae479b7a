"""What every test gets: no network, quiet libraries, and Ray on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ranks import Ranks

# Set before any library is imported, and inherited by every process that a test starts.
os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or a cluster's actors would starve beside another test's processes
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than free cores cost more than they give
# DeepSpeed looks for ninja on the PATH; a test may be run without the environment being activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# A test never joins a cluster that the shell happens to name.
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run fast tests first: a mistake in a formula should not wait for a cluster.

    Where files are dealt to several processes, the slow ones go first: none of them should work alone at the end.
    """
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.integration)
    if not hasattr(config, "workerinput"):  # of xdist
        items.sort(key=lambda item: (is_marked(item, "slow"), is_marked(item, "integration")))
        return
    slow_files = {item.path for item in items if is_marked(item, "slow")}
    items.sort(key=lambda item: item.path not in slow_files)


def is_marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Ray in this process for the tests of one module; see tests/clusters.py for other sizes."""
    from tests.clusters import local_ray

    with local_ray():
        yield


@pytest.fixture
def one_rank() -> Ranks:
    """A trainer rank, started once a session."""
    from tests.ranks import ranks

    return ranks(1)


@pytest.fixture
def two_ranks() -> Ranks:
    """Two trainer ranks, started once a session."""
    from tests.ranks import ranks

    return ranks(2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the fault matrix, where any test has added to it."""
    faults = sys.modules.get("tests.faults.table")
    if faults is not None and faults.CASES:
        terminalreporter.section("faults")
        terminalreporter.write_line(faults.rendered(faults.CASES))


def pytest_sessionfinish() -> None:
    """End the trainer ranks, where any test has started them."""
    if "tests.ranks" in sys.modules:
        sys.modules["tests.ranks"].stop_all()
