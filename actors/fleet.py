"""Starts and ends what a run may need, stage by stage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from actors import requirements
from actors.cluster import living_nodes
from actors.node_groups import pinned
from actors.placement import assign
from actors.scope import Scope
from actors.transport import transport
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError

SCALED = ("generator", "reference", "reward_model")  # roles that may grow and shrink while a run is under way


class Fleet:
    """Everything that a run may start, on one cluster and one kind of device."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.config = config
        self.device = device
        self._scopes: list[Scope] = []

    def require_room(self) -> None:
        """Raise in no time what would stop a later stage: PlacementError, or ConfigError for a transport."""
        transport(self.config, self.device)
        nodes = living_nodes()
        for wanted in requirements.stages(self.config, self.device).values():
            assign(pinned(wanted, nodes), nodes)

    def snapshot(self) -> list[dict[str, Any]]:
        """The generators and servers that there are now, for people."""
        return [group for scope in self._scopes for group in scope.snapshot()]

    def resize(self, role: str, count: int) -> None:
        """Have ``count`` actors of a role (SCALED) from now on, in later stages too. Raises ConfigError."""
        self.config = scaled(self.config, role, count)
        for scope in self._scopes:
            scope.resize(role, count)

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Scope]:
        scope = Scope(self.config, self.device)
        self._scopes.append(scope)
        try:
            await scope.open()
            yield scope
        finally:
            self._scopes.remove(scope)
            await scope.close()


def scaled(config: RunConfig, role: str, count: int) -> RunConfig:
    """The configuration with ``count`` actors of a role. Raises ConfigError for a role that cannot be scaled."""
    if role == "generator":
        generation = replace(config.generation, num_engines=count, scale="fixed", min_engines=1, max_engines=None)
        return replace(config, generation=generation)
    if role == "reference" and config.training.lora.enabled:
        raise ConfigError("--references", count, "cannot be had", "with LoRA the trainer itself is the reference")
    if role == "reference":
        return replace(config, reference=replace(config.reference, num_replicas=count))
    if role == "reward_model":
        return replace(config, reward_server=replace(config.reward_server, num_replicas=count))
    raise ConfigError("role", role, "cannot be scaled while a run is under way", f"scale one of {', '.join(SCALED)}")
