"""Rooms of equal actors that come and go one by one: each its own placement group, spread over the nodes.

A placement group cannot grow, and a bundle of it cannot be given back. A group of one bundle can, and Ray's autoscaler
sees what is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table

from actors.placement import GROUPS, Bundle, Node, least_taken


class Rooms:
    """The placement groups of one role. A group of one bundle goes to the node with the fewest of the role.

    The node is a wish: where it is full by then, the room is wherever there is some, or will be.
    """

    def __init__(self) -> None:
        self._groups: dict[PlacementGroup, tuple[Bundle, str | None]] = {}

    def reserve(self, bundle: Bundle) -> PlacementGroup:
        """Ask for room. It is there when the group is ready."""
        places = {group: node_of(group) for group in self._groups}
        node = least_taken(bundle, self._free(places), self._taken(places))
        group = placement_group([bundle.resources or {"CPU": 0.001}], strategy="STRICT_PACK", _soft_target_node_id=node)
        self._groups[group] = bundle, node
        return group

    def adopt(self, group: PlacementGroup, bundle: Bundle) -> None:
        """A room that is there already is one of the role's."""
        self._groups[group] = bundle, None

    def forget(self, group: PlacementGroup) -> None:
        """The room is given back."""
        self._groups.pop(group, None)

    def _taken(self, places: Mapping[PlacementGroup, str | None]) -> Counter[str]:
        homes = [places[group] or wish for group, (_, wish) in self._groups.items()]
        return Counter(home for home in homes if home is not None)

    def _free(self, places: Mapping[PlacementGroup, str | None]) -> list[Node]:
        """What the nodes have left, without what was asked for and is not placed yet."""
        left = {node.name: node for node in free_nodes()}
        for group, (bundle, wish) in self._groups.items():
            if places[group] is None and wish in left:
                node = left[wish]
                left[wish] = replace(node, cpus=node.cpus - bundle.cpus, gpus=node.gpus - bundle.gpus)
        return list(left.values())


def node_of(group: PlacementGroup) -> str | None:
    """The node of a group's only bundle; None before it is placed."""
    table: Mapping[str, Any] = placement_group_table(group)
    if table["state"] != "CREATED":
        return None
    (node,) = table["bundles_to_node_id"].values()
    return str(node)


def free_nodes() -> list[Node]:
    """Living nodes by their id, with what nobody has taken."""
    living = {row["NodeID"]: row["Resources"] for row in ray.nodes() if row["Alive"]}
    return [
        Node(node, free.get("CPU", 0.0), free.get("GPU", 0.0), frozenset(living[node].keys() & set(GROUPS)))
        for node, free in available_resources_per_node().items()
        if node in living
    ]
