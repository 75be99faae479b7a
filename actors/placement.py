"""From the configuration to Ray bundles, by arithmetic alone: who needs what, and can the cluster ever give it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.errors import PlacementError

GROUPS = ("trainer", "generator", "server")  # custom resources by which a node says what it is for: see node_groups
MAX_NAMED = 4  # equal nodes that an error lists one by one
GROUP_SHARE = 0.001  # of a node's group that one bundle takes: a thousand fit


@dataclass(frozen=True)
class Bundle:
    """What one actor needs. ``field`` names the setting that decides it."""

    role: str
    index: int
    cpus: float
    gpus: float
    field: str
    group: str = ""  # of nodes that it must go to, see node_groups; empty: any node

    @property
    def resources(self) -> dict[str, float]:
        """As Ray takes them. A group is a custom resource of its nodes, of which a bundle takes next to nothing."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, self.group: GROUP_SHARE if self.group else 0.0}
        return {name: amount for name, amount in amounts.items() if amount > 0}

    def __str__(self) -> str:
        needs = _needs(self)
        return f"{self.role} {self.index}: {needs or 'nothing'}"


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has in all."""

    name: str
    cpus: float
    gpus: float
    groups: frozenset[str] = frozenset()


def bundles(role: str, *, count: int, cpus: float, gpus: float, device: str, field: str) -> tuple[Bundle, ...]:
    """``count`` equal bundles for one role; on CPU nothing asks for a GPU."""
    return tuple(Bundle(role, i, cpus, gpus if device == "cuda" else 0.0, field) for i in range(count))


def assign(wanted: Sequence[Bundle], nodes: Sequence[Node]) -> dict[Bundle, str]:
    """Put every bundle on a node, largest first, and return the node's name for each.

    Raises PlacementError when the empty cluster could not hold them all: it says what is asked, what exists, and which
    settings to change. First-fit decreasing, so a request that fits only by a cleverer packing is refused as well.
    """
    free = [(node, [node.cpus, node.gpus]) for node in nodes]
    placed: dict[Bundle, str] = {}
    for bundle in sorted(wanted, key=lambda b: (-b.gpus, -b.cpus, b.role, b.index)):
        for node, room in free:
            allowed = not bundle.group or bundle.group in node.groups
            if allowed and room[0] + 1e-9 >= bundle.cpus and room[1] + 1e-9 >= bundle.gpus:
                room[0] -= bundle.cpus
                room[1] -= bundle.gpus
                placed[bundle] = node.name
                break
        else:
            raise PlacementError(explain(bundle, wanted, nodes))
    return placed


def least_taken(bundle: Bundle, free: Sequence[Node], taken: Mapping[str, int]) -> str | None:
    """The node that has room for the bundle and the fewest of its role, ``taken`` by name; None where none has room.

    Among equals the one with the most room left, so that roles do not crowd each other.
    """
    fitting = [
        node
        for node in free
        if (not bundle.group or bundle.group in node.groups)
        and node.cpus + 1e-9 >= bundle.cpus
        and node.gpus + 1e-9 >= bundle.gpus
    ]
    best = min(fitting, key=lambda n: (taken.get(n.name, 0), -n.gpus, -n.cpus, n.name), default=None)
    return None if best is None else best.name


def explain(stuck: Bundle, wanted: Sequence[Bundle], nodes: Sequence[Node]) -> str:
    """Say what is asked for, what exists and what to change."""
    cpus, gpus = total(wanted)
    short = []
    if cpus > sum(n.cpus for n in nodes):
        short.append("CPUs")
    if gpus > sum(n.gpus for n in nodes):
        short.append("GPUs")
    one = f"{stuck.group} node" if stuck.group else "single node"
    reason = f"not enough {' and '.join(short)}" if short else f"no {one} has room for it beside the others"
    asked = "; ".join(f"{role} x{count} ({each})" for role, count, each in _by_role(wanted))
    exists = "; ".join(_nodes_by_kind(nodes)) or "no node"
    fields = ", ".join(sorted({b.field for b in wanted}))
    return (
        f"the cluster can never hold {stuck}: {reason}. Asked for {cpus:g} CPU and {gpus:g} GPU in all: {asked}. "
        f"The cluster has {exists}. Lower one of {fields}, or add nodes."
    )


def total(wanted: Iterable[Bundle]) -> tuple[float, float]:
    """(CPUs, GPUs) of all bundles together."""
    items = list(wanted)
    return sum(b.cpus for b in items), sum(b.gpus for b in items)


def _by_role(wanted: Sequence[Bundle]) -> list[tuple[str, int, str]]:
    roles: dict[str, list[Bundle]] = {}
    for bundle in wanted:
        roles.setdefault(bundle.role, []).append(bundle)
    return [(role, len(group), _needs(group[0])) for role, group in roles.items()]


def _needs(bundle: Bundle) -> str:
    amounts = " + ".join(f"{v:g} {k}" for k, v in bundle.resources.items() if k != bundle.group)
    return f"{amounts} on a {bundle.group} node" if bundle.group else amounts


def _nodes_by_kind(nodes: Sequence[Node]) -> list[str]:
    """Each node; more than a few of the same size are told as one."""
    alike: dict[tuple[float, float, frozenset[str]], list[str]] = {}
    for node in nodes:
        alike.setdefault((node.cpus, node.gpus, node.groups), []).append(node.name)
    lines = []
    for (cpus, gpus, groups), names in alike.items():
        has = f"{cpus:g} CPU, {gpus:g} GPU" + (f" ({', '.join(sorted(groups))})" if groups else "")
        lines += [f"{name}: {has}" for name in names] if len(names) <= MAX_NAMED else [f"{len(names)} nodes: {has}"]
    return lines


def nodes_from_ray(rows: Iterable[Mapping[str, Any]]) -> tuple[Node, ...]:
    """Living nodes from ``ray.nodes()``."""
    living = []
    for row in rows:
        if row["Alive"]:
            resources, name = row["Resources"], str(row["NodeManagerAddress"])
            groups = frozenset(resources.keys() & set(GROUPS))
            living.append(Node(name, float(resources.get("CPU", 0)), float(resources.get("GPU", 0)), groups))
    return tuple(living)
