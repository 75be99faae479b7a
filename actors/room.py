"""Room in the cluster, where a node was lost: it comes back, or another comes, or the run says what it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from actors.cluster import living_nodes
from actors.messages import say
from actors.node_groups import pinned
from actors.placement import Bundle, Node, assign
from rlhf_ray.errors import PlacementError

POLL_S = 0.5
PATIENCE_S = 2.0  # before anything is said: a bundle often moves at once
REMINDER_S = 30.0
FIRST_ROOM = "cluster.placement_timeout_s"
LATER_ROOM = "cluster.wait_for_room_s"


def nothing_to_end() -> bool:
    return False


async def reserve(
    wanted: Sequence[Bundle], limit_s: float, make_room: Callable[[], bool] = nothing_to_end
) -> PlacementGroup:
    """Room for all bundles together, packed on as few nodes as hold them, where their role may go.

    ``make_room`` ends what only rests in the cluster, once there is nothing else to do than to wait.

    Raises PlacementError at once where the cluster can never hold them, after ``limit_s`` seconds where it does not.
    """
    nodes = living_nodes()
    wanted = pinned(wanted, nodes)
    assign(wanted, nodes)
    group = placement_group([bundle.resources or {"CPU": 0.001} for bundle in wanted], strategy="PACK")
    there = await asyncio.to_thread(group.wait, min(PATIENCE_S, limit_s))
    if not there:
        make_room()
    if not there and not await asyncio.to_thread(group.wait, limit_s):
        remove_placement_group(group)
        available = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        raise PlacementError(
            f"no room for {'; '.join(str(bundle) for bundle in wanted)} within {limit_s:g} s ({FIRST_ROOM}); free now: "
            f"{available}. The cluster is large enough, so something else holds its resources: see `ray status`"
        )
    return group


async def wait_for_room(
    group: PlacementGroup,
    wanted: Sequence[Bundle],
    limit_s: float,
    *,
    field: str = LATER_ROOM,
    make_room: Callable[[], bool] = nothing_to_end,
) -> None:
    """Wait until every bundle has a node that lives, and say what is waited for.

    ``make_room`` as in :func:`reserve`. Raises PlacementError after ``limit_s`` seconds, those of ``field``.
    """
    begun, said = time.monotonic(), -REMINDER_S
    while (homeless := await asyncio.to_thread(without_node, group, wanted)) is not None:
        waited = time.monotonic() - begun
        if waited > limit_s:
            raise PlacementError(f"no room within {limit_s:g} s ({field}): {explain_wait(homeless, living_nodes())}")
        if waited > PATIENCE_S and make_room():
            continue
        if waited > PATIENCE_S and waited - said > REMINDER_S:
            say(f"waiting for room: {explain_wait(homeless, living_nodes())}; for {limit_s - waited:.0f} s more")
            said = waited
        await asyncio.sleep(POLL_S)


def without_node(group: PlacementGroup, wanted: Sequence[Bundle]) -> list[Bundle] | None:
    """The bundles whose node is gone and that have no other yet; None where all is in place."""
    table = placement_group_table(group)
    living = {row["NodeID"] for row in ray.nodes() if row["Alive"]}
    homeless = [wanted[int(place)] for place, node in table["bundles_to_node_id"].items() if node not in living]
    return None if table["state"] == "CREATED" and not homeless else homeless


def explain_wait(homeless: Sequence[Bundle], nodes: Sequence[Node]) -> str:
    """Which roles wait, for what, and what the cluster has."""
    asked = "; ".join(str(bundle) for bundle in homeless) or "bundles that the cluster is placing"
    exists = "; ".join(f"{n.name}: {n.cpus:g} CPU, {n.gpus:g} GPU" for n in nodes) or "no node"
    return f"asked for {asked}. The cluster has {exists}, some of it in use"
