"""What a run says while it waits for room."""

from __future__ import annotations

from actors.placement import Node, bundles
from actors.room import explain_wait


def test_a_wait_names_the_roles_what_they_need_and_what_there_is() -> None:
    wanted = bundles("reference", count=1, cpus=2, gpus=1, device="cuda", field="reference.num_replicas")
    said = explain_wait(wanted, [Node("10.0.0.1", 8, 0)])
    assert said == ("asked for reference 0: 2 CPU + 1 GPU. The cluster has 10.0.0.1: 8 CPU, 0 GPU, some of it in use")
