"""Handles that look like Ray's: ``handle.verb.remote(...)`` is something to await, and nothing leaves the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import RayActorError

from actors.replicas import Replicas
from rlhf_ray.supervision.budget import RestartBudget, RestartLimit


class FakeMethod:
    def __init__(self, function: Any, num_returns: int = 1) -> None:
        self._function, self._num_returns = function, num_returns

    def options(self, *, num_returns: int) -> FakeMethod:
        return FakeMethod(self._function, num_returns)

    def remote(self, *arguments: Any, **named: Any) -> Any:
        whole = asyncio.ensure_future(self._call(arguments, named))
        if self._num_returns == 1:
            return whole
        return [asyncio.ensure_future(_item(whole, index)) for index in range(self._num_returns)]

    async def _call(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        result = self._function(*arguments, **named)
        return await result if isinstance(result, Awaitable) else result


class FakeHandle:
    """The methods of ``actor``, as a handle's."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(getattr(self._actor, name))


async def _item(whole: Awaitable[Any], index: int) -> Any:
    return (await whole)[index]


def replicas_of(*servers: Any, max_restarts: int = 3, max_deaths_per_batch: int = 2, **others: Any) -> Replicas:
    """Servers that are never started again, unless ``replace`` says how."""

    async def refuse(place: int, reason: str) -> Any:
        raise AssertionError(f"server {place} is started again: {reason}")

    limit = RestartLimit(max_restarts, window_s=60.0, backoff_s=0.0)
    budget = RestartBudget(infrastructure=limit, data=limit, clock=time.monotonic)
    settings = {"replace": refuse, "budget": budget, "timeout_s": 5.0, **others}
    handles = [FakeHandle(server) for server in servers]
    return Replicas("server", handles, max_deaths_per_batch=max_deaths_per_batch, **settings)


def died() -> Exception:
    """What Ray raises of an actor whose process is gone."""
    return RayActorError()
