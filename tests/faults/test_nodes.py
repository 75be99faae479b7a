"""A node of the cluster is lost: what ran there moves, or the run says what it waits for and gives up in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.answers import answer
from actors.fleet import Fleet
from actors.rooms import node_of
from rlhf_ray.config.cluster import ClusterConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.errors import BlockLostError, PlacementError
from rlhf_ray.roles import RolloutShard
from tests import tiny
from tests.clusters import ray_nodes
from tests.faults.table import fault_case

pytestmark = [pytest.mark.faults, pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head on which nothing is placed; nodes come and go."""
    with ray_nodes(head_cpus=0) as nodes:
        yield nodes


def config_for(directory: Path, wait_for_room_s: float) -> RunConfig:
    return replace(
        RunConfig(),
        output_dir=str(directory),
        cluster=ClusterConfig(wait_for_room_s=wait_for_room_s),
        reference=ServerConfig(cpus_per_replica=1),
    )


async def test_a_server_of_a_lost_node_waits_for_room_and_answers_the_same_on_another(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    said: list[str] = []
    for module in ("crew", "replicas", "room"):
        monkeypatch.setattr(f"actors.{module}.say", said.append)
    policy = tiny.saved(tiny.causal_model(), tmp_path / "policy")
    rollouts = tuple(tiny.rollouts(4))
    shard = RolloutShard(tuple(r.summary for r in rollouts), ray.put(rollouts))
    lost = cluster.add_node(num_cpus=1)
    async with Fleet(config_for(tmp_path, wait_for_room_s=600.0), "cpu").scope() as scope:
        reference = await scope.reference(policy)
        before = await scope.fetch(await reference.logprobs(shard))
        with fault_case("node", "reference idle", "waits for room, then the same numbers") as watch:
            await asyncio.to_thread(cluster.remove_node, lost)
            watch.struck()
            asked = asyncio.create_task(reference.logprobs(shard))
            while not any(message.startswith("waiting for room: asked for reference 0: 1 CPU") for message in said):
                assert not asked.done()
                await asyncio.sleep(0.1)
            watch.noticed()
            cluster.add_node(num_cpus=1)  # in this thread: it sets a signal handler
            after = await scope.fetch(await asked)
            watch.recovered()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


async def test_where_no_room_comes_the_run_ends_and_says_what_it_waited_for(cluster: Any, tmp_path: Path) -> None:
    import ray

    policy = tiny.saved(tiny.causal_model(), tmp_path / "policy")
    rollouts = tuple(tiny.rollouts(4))
    shard = RolloutShard(tuple(r.summary for r in rollouts), ray.put(rollouts))
    lost = cluster.add_node(num_cpus=1)
    async with Fleet(config_for(tmp_path, wait_for_room_s=3.0), "cpu").scope() as scope:
        reference = await scope.reference(policy)
        with fault_case("node", "reference idle, no other comes", "clear error after cluster.wait_for_room_s") as watch:
            await asyncio.to_thread(cluster.remove_node, lost)
            watch.struck()
            with pytest.raises(
                PlacementError, match=r"no room within 3 s \(cluster\.wait_for_room_s\): asked for reference 0: 1 CPU"
            ):
                await reference.logprobs(shard)
            watch.recovered()


async def test_rollouts_that_lay_on_a_lost_node_only_are_known_to_be_gone(cluster: Any) -> None:
    """Whether they are what an actor is given, or asked for themselves."""
    import ray

    def block() -> Any:
        return np.zeros(1_000_000)  # too large to travel with an answer

    def use(block: Any) -> int:
        return len(block)

    lost = cluster.add_node(num_cpus=1, resources={"lost": 1})
    cluster.add_node(num_cpus=1, resources={"stays": 1})
    ref = ray.remote(block).options(resources={"lost": 0.1}, max_retries=0).remote()
    await asyncio.to_thread(ray.wait, [ref], fetch_local=False)
    with fault_case("node", "rollouts finished, not scored", "known to be gone, to be sampled again") as watch:
        await asyncio.to_thread(cluster.remove_node, lost)
        watch.struck()
        given = ray.remote(use).options(resources={"stays": 0.1}).remote(ref)
        with pytest.raises(BlockLostError, match="reference 0"):
            await answer(given, who="reference 0", verb="logprobs", timeout_s=600.0)
        watch.noticed()
        with pytest.raises(BlockLostError, match="object store"):
            await answer(ref, who="object store", verb="fetch", timeout_s=600.0)
        watch.recovered()


async def test_servers_come_and_go_while_they_are_asked_and_spread_over_the_nodes(cluster: Any, tmp_path: Path) -> None:
    import ray

    policy = tiny.saved(tiny.causal_model(), tmp_path / "policy")
    rollouts = tuple(tiny.rollouts(4))
    shard = RolloutShard(tuple(r.summary for r in rollouts), ray.put(rollouts))
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    fleet = Fleet(config_for(tmp_path, wait_for_room_s=600.0), "cpu")
    async with fleet.scope() as scope:
        reference = await scope.reference(policy)
        before = await scope.fetch(await reference.logprobs(shard))
        fleet.resize("reference", 2)
        while [member["state"] for member in fleet.snapshot()[0]["members"]] != ["serving"] * 2:
            assert await reference.logprobs(shard) is not None
        nodes = {node_of(crew.group) for crew in scope._crews}
        both = [await scope.fetch(await reference.logprobs(shard)) for _ in range(2)]
        fleet.resize("reference", 1)
        assert len(scope._crews) == 1
        both.append(await scope.fetch(await reference.logprobs(shard)))
    assert len(nodes) == 2
    assert all(np.array_equal(a, b) for found in both for a, b in zip(before, found, strict=True))
