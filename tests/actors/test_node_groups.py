"""The rules for several nodes: as arithmetic, and on nodes of one machine that Ray takes for several."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from actors import requirements
from actors.node_groups import group_of, pinned
from actors.placement import Bundle, Node
from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import TrainingConfig
from tests.clusters import SHARED_MEMORY, ray_nodes, wait_until_nothing_is_left

NODES = {"trains": {"trainer": 1.0}, "generates": {"generator": 1.0}, "generates too": {"generator": 1.0}}


def test_every_role_of_a_run_has_a_group() -> None:
    roles = {bundle.role for wanted in requirements.stages(RunConfig(), "cuda").values() for bundle in wanted}
    assert {role: group_of(role) for role in roles} == {
        "trainer": "trainer",
        "generator": "generator",
        "reference": "server",
        "reward_model": "server",
    }


def test_roles_are_bound_where_nodes_name_their_group_and_free_where_none_does() -> None:
    wanted = [Bundle(role, 0, 1.0, 0.0, "f") for role in ("trainer", "generator", "reward short")]
    assert pinned(wanted, [Node("a", 4.0, 0.0)]) == tuple(wanted)
    some = pinned(wanted, [Node("a", 4.0, 0.0), Node("b", 4.0, 0.0, frozenset({"generator", "server"}))])
    assert [bundle.group for bundle in some] == ["", "generator", "server"]


@pytest.mark.integration
def test_on_several_nodes_trainers_are_packed_generators_spread_and_each_is_in_its_group() -> None:
    """Room is reserved as a stage reserves it; no actor is started in it."""
    from actors.cluster import living_nodes

    config = replace(RunConfig(), training=TrainingConfig(num_ranks=2), generation=GenerationConfig(num_engines=2))
    small = {"num_cpus": 4, "object_store_memory": 80 * 2**20}
    before = set(SHARED_MEMORY.iterdir())
    with ray_nodes(head_cpus=4) as cluster:
        names = {cluster.add_node(**small, resources=groups).node_id: name for name, groups in NODES.items()}
        cluster.wait_for_nodes()
        said = {node.groups for node in living_nodes()}
        found = asyncio.run(where_room_is(config, names))
    assert said == {frozenset(), frozenset({"trainer"}), frozenset({"generator"})}
    assert found["trainer"] == ["trains", "trains"]
    assert sorted(found["generator"]) == ["generates", "generates too"]
    assert not wait_until_nothing_is_left(before)


async def where_room_is(config: RunConfig, names: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of the nodes on which room for two roles is reserved."""
    from actors.cluster import living_nodes
    from actors.room import reserve, wait_for_room
    from actors.rooms import Rooms

    packed = await reserve(requirements.trainer(config, "cpu"), 60.0)
    rooms, wanted = Rooms(), pinned(requirements.generators(config, "cpu"), living_nodes())
    alone = [rooms.reserve(bundle) for bundle in wanted]
    for group, bundle in zip(alone, wanted, strict=True):
        await wait_for_room(group, [bundle], 60.0)
    return {
        "trainer": nodes_of(packed, names),
        "generator": [name for group in alone for name in nodes_of(group, names)],
    }


def nodes_of(group: Any, names: Mapping[str, str]) -> list[str]:
    from ray.util.placement_group import placement_group_table

    return [names.get(node, "another") for node in placement_group_table(group)["bundles_to_node_id"].values()]
