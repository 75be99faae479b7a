"""Starts and ends what a run may need, stage by stage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors import requirements
from actors.bookkeeper import Bookkeeper
from actors.cluster import living_nodes
from actors.monitor import Monitor
from actors.node_groups import pinned
from actors.placement import assign
from actors.pool import Pool
from actors.scope import CLOSING_S, Scope
from actors.transport import transport
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.ledger.record import RunLedger

SCALED = ("generator", "reference", "reward_model")  # roles that may grow and shrink while a run is under way


class Fleet:
    """Everything that a run may start, on one cluster and one kind of device; what they do goes to ``ledger``."""

    def __init__(self, config: RunConfig, device: str, ledger: RunLedger | None = None) -> None:
        self.config = config
        self.device = device
        self._books = Bookkeeper(ledger)
        self._scopes: list[Scope] = []
        self._kept: tuple[Monitor, Pool] | None = None

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
    async def kept(self) -> AsyncIterator[None]:
        """Inside the block an actor goes from stage to stage, where the next one wants the same.

        Only on CPU: a process that rests on a GPU holds memory there, and beside a stage of hours a start is nothing.
        """
        if self.device == "cuda" or not self.config.cluster.keep_actors:
            yield
            return
        monitor, pool = self._monitor(), Pool()
        await monitor.start()
        self._kept = monitor, pool
        try:
            yield
        finally:
            self._kept = None
            await pool.close(CLOSING_S)
            await monitor.close()

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Scope]:
        """The actors of one stage. One that fails leaves none to another."""
        monitor, pool = self._kept or (self._monitor(), Pool())
        scope = Scope(self.config, self.device, monitor=monitor, pool=pool, books=self._books)
        self._scopes.append(scope)
        whole = False
        try:
            if self._kept is None:
                await monitor.start()
            yield scope
            whole = True
        finally:
            self._scopes.remove(scope)
            await scope.close(leave=whole and self._kept is not None)
            if self._kept is None:
                await monitor.close()

    def _monitor(self) -> Monitor:
        return Monitor(self.config.faults.heartbeat_timeout_s, Path(self.config.output_dir) / "stacks")


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
