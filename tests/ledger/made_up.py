"""Runs that never were: events with round times."""

from __future__ import annotations

from typing import Any

from rlhf_ray.ledger.accounts import DRIVER, Account
from rlhf_ray.ledger.lives import Story, told

Booked = tuple[Account, float, float]


def begins(worker: str, at: float, *, restart: bool = False, gpus: float = 0.0) -> dict[str, Any]:
    role = worker.split()[0]
    return {"event": "begins", "worker": worker, "role": role, "gpus": gpus, "at": at, "restart": restart}


def books(worker: str, since: float, until: float, *spans: Booked) -> dict[str, Any]:
    booked = [[str(account), begun, ended] for account, begun, ended in spans]
    return {"event": "books", "worker": worker, "since": since, "until": until, "spans": booked}


def ends(worker: str, at: float, how: str = "closed") -> dict[str, Any]:
    return {"event": "ends", "worker": worker, "at": at, "how": how}


def during(account: Account, begun: float, ended: float, role: str = "") -> dict[str, Any]:
    return {"event": "during", "account": str(account), "role": role, "begun": begun, "ended": ended}


def step(begun: float, ended: float, sampled: int = 100, discarded: int = 0) -> dict[str, Any]:
    counts = {"prompts": 10, "sampled": sampled, "discarded": discarded, "trained": 2 * (sampled - discarded)}
    return {"event": "step", "begun": begun, "ended": ended, **counts}


def run(*events: dict[str, Any], until: float = 100.0) -> Story:
    """A driver from 0 to ``until``, and what happens meanwhile."""
    return told([begins(DRIVER, 0.0), *events, ends(DRIVER, until)])
