"""Which role goes to which nodes: the rules for several nodes, in one place.

A node says what it is for with a custom resource, ``ray start --resources='{"trainer": 1}'``: ``trainer``,
``generator`` or ``server``, or several of them. Where no living node names a group, its roles go wherever they fit.

| role | group | placement | what crosses the network |
|---|---|---|---|
| trainer ranks | trainer | packed on as few nodes as hold them | gradients and parameters, every minibatch (NCCL) |
| generators | generator | spread over the nodes | prompts and rollouts; the weights, once a step |
| reference, reward models, reward functions | server | spread over the nodes | rollouts and scores |
| driver | head | where the job was started | references, summaries and scores; never tokens |

Trainer ranks are packed since they exchange most. Generators are spread since a node that is lost then takes the fewest
of them along. Frozen servers hold nothing that a restart cannot load again: any node will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from actors.placement import GROUPS, Bundle, Node


def group_of(role: str) -> str:
    """The nodes' group of a role; every role that is neither trained nor sampled from is a frozen server."""
    return role if role in GROUPS else "server"


def pinned(wanted: Iterable[Bundle], nodes: Sequence[Node]) -> tuple[Bundle, ...]:
    """The bundles, each bound to the nodes of its group where any node is of that group."""
    named = {group for node in nodes for group in node.groups}
    return tuple(
        replace(bundle, group=group_of(bundle.role)) if group_of(bundle.role) in named else bundle for bundle in wanted
    )
