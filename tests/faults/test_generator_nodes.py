"""A node with a generator is lost: its rollouts are sampled elsewhere, and another node brings the fleet back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.fleet import Fleet
from rlhf_ray.config.cluster import ClusterConfig
from rlhf_ray.config.run import RunConfig
from tests import tiny
from tests.clusters import ray_nodes
from tests.faults.table import fault_case
from tests.faults.test_generators import GENERATION, SAME, SHAPE, World, require_same

pytestmark = [pytest.mark.faults, pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]


async def test_the_rollouts_of_a_lost_node_are_sampled_again_elsewhere(tmp_path: Path) -> None:

    policy = tiny.saved(tiny.causal_model(**SHAPE), tmp_path / "policy")
    config = replace(
        RunConfig(), output_dir=str(tmp_path), cluster=ClusterConfig(wait_for_room_s=900.0), generation=GENERATION
    )
    with ray_nodes(head_cpus=1) as nodes:
        lost = nodes.add_node(num_cpus=1)
        async with Fleet(config, "cpu").scope() as scope:
            generators = await scope.generators(policy)
            world = World(scope, generators)
            wanted = await world.sampled()
            with fault_case("node", "generator generating", SAME) as watch:
                removing: list[asyncio.Future[Any]] = []

                def strike() -> None:
                    removing.append(asyncio.ensure_future(asyncio.to_thread(nodes.remove_node, lost)))
                    watch.struck()

                noticing = asyncio.ensure_future(world.until(lambda: len(world.serving) == 1))
                noticing.add_done_callback(lambda _: watch.noticed())
                require_same(await world.sampled(meanwhile=strike), wanted)
                await asyncio.gather(*removing, noticing)
                nodes.add_node(num_cpus=1)  # in this thread: it sets a signal handler
                await world.until(lambda: len(world.serving) == 2)
                watch.recovered()
