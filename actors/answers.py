"""Waiting for actors, never for ever: every wait has a deadline and every failure names who failed at what."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rlhf_ray.errors import RlhfError


class ActorDiedError(RlhfError):
    """An actor's process is gone."""


class ActorTimeoutError(RlhfError):
    """An actor did not answer within its deadline."""


async def answer(ref: Any, *, who: str, verb: str, timeout_s: float) -> Any:
    """Wait for a reference.

    Raises ActorTimeoutError past the deadline, ActorDiedError when the process is gone, and an actor's own RlhfError as
    itself.
    """
    try:
        return await asyncio.wait_for(ref, timeout_s)
    except RayTaskError as error:  # first: what a task raises is a subclass of its cause too, of TimeoutError even
        cause = error.cause
        if isinstance(cause, RlhfError):
            raise cause from None
        raise RlhfError(f"{who} failed in '{verb}': {error}") from error
    except (TimeoutError, GetTimeoutError) as error:
        raise ActorTimeoutError(
            f"{who} has not finished '{verb}' within {timeout_s:g} s (cluster.actor_timeout_s); it may hang: look at "
            "its stack with `py-spy dump`, or raise the limit when the work is only large"
        ) from error
    except RayActorError as error:
        raise ActorDiedError(f"{who} died in '{verb}': {error}") from error
    except RayError as error:  # an object that was lost, an environment that could not be made, ...
        raise RlhfError(f"{who} failed in '{verb}': {error}") from error


async def answers(refs: list[Any], *, who: str, verb: str, timeout_s: float) -> list[Any]:
    """Wait for one reference a member of a group; the first failure is raised at once."""
    tasks = [
        asyncio.ensure_future(answer(ref, who=f"{who} {index}", verb=verb, timeout_s=timeout_s))
        for index, ref in enumerate(refs)
    ]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
