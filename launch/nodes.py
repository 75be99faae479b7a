"""Wait until the cluster that RAY_ADDRESS names has its nodes: ``python -m launch.nodes NUM_NODES``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

TIMEOUT_S = 300.0
POLL_INTERVAL_S = 2.0


def wait_for_nodes(
    num_nodes: int,
    *,
    count_nodes: Callable[[], int],
    timeout_s: float = TIMEOUT_S,
    poll_interval_s: float = POLL_INTERVAL_S,
) -> bool:
    """Return whether the nodes came in time; say what is there whenever that changes."""
    deadline = time.monotonic() + timeout_s
    seen = -1
    while True:
        alive = count_nodes()
        if alive != seen:
            print(f"{alive} of {num_nodes} nodes are there", flush=True)
            seen = alive
        if alive >= num_nodes or time.monotonic() >= deadline:
            return alive >= num_nodes
        time.sleep(poll_interval_s)


class Cluster:
    """Counts a cluster's nodes, and counts none as long as its head does not answer."""

    def __init__(self) -> None:
        self.joined = False

    def num_nodes(self) -> int:
        import ray

        if not self.joined:
            try:
                ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
            except ConnectionError:
                return 0
            self.joined = True
        return sum(node["Alive"] for node in ray.nodes())


def main() -> int:
    num_nodes = int(sys.argv[1])
    if wait_for_nodes(num_nodes, count_nodes=Cluster().num_nodes):
        return 0
    print(
        f"{num_nodes} nodes did not come within {TIMEOUT_S:.0f} s; look at the output of `ray start` on those missing, "
        "and at firewalls between the nodes",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
