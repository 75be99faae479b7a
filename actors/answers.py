"""Waiting for actors, never for ever: every wait has a deadline and every failure names who failed at what."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from rlhf_ray.errors import BlockLostError, RlhfError

PEERS_S = 10.0  # for the news that a peer is dead, after an actor failed because of it


class ActorError(RlhfError):
    """``who`` failed, as it was named in the call."""

    def __init__(self, who: str, message: str) -> None:
        super().__init__(message)
        self.who = who

    def __reduce__(self) -> tuple[type[ActorError], tuple[str, str]]:
        return type(self), (self.who, str(self))


class ActorDiedError(ActorError):
    """An actor's process is gone."""


class ActorTimeoutError(ActorError):
    """An actor did not answer within its deadline."""


class ActorFailedError(ActorError):
    """An actor's code raised what it does not raise on purpose."""


async def answer(ref: Any, *, who: str, verb: str, timeout_s: float) -> Any:
    """Wait for a reference.

    Raises ActorTimeoutError past the deadline, ActorDiedError when the process is gone, BlockLostError when what it was
    given or has answered is gone with a node, and an actor's own RlhfError as itself.
    """
    try:
        return await asyncio.wait_for(ref, timeout_s)
    except RayTaskError as error:  # first: what a task raises is a subclass of its cause too, of TimeoutError even
        cause = error.cause
        if isinstance(cause, RlhfError):
            raise cause from None
        if isinstance(cause, ObjectLostError):
            raise BlockLostError(f"{who} cannot begin '{verb}': {first_line(cause)}") from error
        raise ActorFailedError(who, f"{who} failed in '{verb}': {error}") from error
    except (TimeoutError, GetTimeoutError) as error:
        raise ActorTimeoutError(
            who,
            f"{who} has not finished '{verb}' within {timeout_s:g} s (cluster.actor_timeout_s); it may hang: look at "
            "its stack with `py-spy dump`, or raise the limit when the work is only large",
        ) from error
    except RayActorError as error:
        raise ActorDiedError(who, f"{who} died in '{verb}': {error}") from error
    except ObjectLostError as error:
        raise BlockLostError(f"{who}: what '{verb}' needs is gone: {first_line(error)}") from error
    except RayError as error:  # an environment that could not be made, ...
        raise ActorFailedError(who, f"{who} failed in '{verb}': {error}") from error


async def answers(refs: list[Any], *, who: str, verb: str, timeout_s: float) -> list[Any]:
    """Wait for one reference a member of a group; the first failure is raised at once.

    But where a member's code fails, for a peer may have left it in a collective, and a dead peer is what is raised.
    """
    tasks = [
        asyncio.ensure_future(answer(ref, who=f"{who} {index}", verb=verb, timeout_s=timeout_s))
        for index, ref in enumerate(refs)
    ]
    try:
        return list(await asyncio.gather(*tasks))
    except ActorFailedError:
        await asyncio.wait(tasks, timeout=PEERS_S)
        for task in tasks:
            if task.done() and isinstance(task.exception(), ActorDiedError):
                task.result()
        raise
    finally:
        for task in tasks:
            task.cancel()


def first_line(error: BaseException) -> str:
    """Of what an error says: Ray's go on for pages."""
    return str(error).split("\n", maxsplit=1)[0]
