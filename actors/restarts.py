"""From a budget's answer to what happens: wait a little, or stop the run and say why."""

from __future__ import annotations

import asyncio

from rlhf_ray.errors import RlhfError
from rlhf_ray.supervision.budget import Exhausted, RestartBudget


class RestartsExhaustedError(RlhfError):
    """A role dies again and again."""


async def restart_allowed(budget: RestartBudget, who: str, reason: str) -> None:
    """Take one restart after an infrastructure fault. Raises RestartsExhaustedError where there is none left."""
    allowed = budget.spend("infrastructure")
    if isinstance(allowed, Exhausted):
        raise RestartsExhaustedError(
            f"{who} is not started again: {allowed} (faults.max_restarts). The last fault: {reason}"
        )
    await asyncio.sleep(allowed.delay_s)
