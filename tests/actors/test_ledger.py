"""The ledger of real actors: what they say they did sums to the time that they were there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from actors.fleet import Fleet
from actors.scope import Scope
from rlhf_ray.ledger.accounts import DRIVER, Account
from rlhf_ray.ledger.balance import balance
from rlhf_ray.ledger.lanes import lanes
from rlhf_ray.ledger.lives import Story, told
from rlhf_ray.ledger.record import RunLedger
from tests.actors.test_pool import checkpoint, config_in, fitted, referred, sampled
from tests.clusters import local_ray


async def chain(directory: Path) -> tuple[Story, dict[str, float]]:
    """Two stages on the same actors; the story of it, and how long the calls of each kind took from outside."""
    events: list[Any] = []
    ledger, path, took = RunLedger(events.append), checkpoint(directory, 1), dict[str, float]()
    config = config_in(directory)
    fleet = Fleet(config, "cpu", ledger)
    with local_ray():
        async with fleet.kept():
            for stage in ("first", "second"):
                ledger.stage(stage)
                async with fleet.scope() as scope:
                    await sampled(scope, path)
                    begun = time.monotonic()
                    await referred(scope, path)
                    await fitted(scope, path)
                    took[stage] = time.monotonic() - begun
    ledger.close()
    return told(events), took


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_accounts_of_a_real_run_sum_to_the_time_of_its_workers(tmp_path: Path) -> None:
    begun = time.monotonic()
    story, took = await chain(tmp_path)
    wall_s = time.monotonic() - begun
    found, drawn = balance(story), lanes(story)
    assert set(drawn) == {DRIVER, "generator 0", "reference 0", "trainer 0", "trainer 1"}
    assert found.difference < 0.02
    assert found.wall_s == pytest.approx(wall_s, rel=0.02)
    assert len(story.lives) == 5  # one each: they went from stage to stage
    for role, work in (("generator", Account.GENERATION), ("reference", Account.SCORING), ("trainer", Account.FITTING)):
        sums = found.by_role[role]
        assert 0 < sums[work] < 2 * sum(took.values()), role
        assert sums[Account.START_UP] > sums[work], role  # it imports for seconds and works for tenths
    assert sum(found.by_stage["second"].values()) < sum(found.by_stage["first"].values())  # nobody starts


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_worker_that_is_killed_is_booked_to_the_restart_and_the_run_balances(tmp_path: Path) -> None:
    events: list[Any] = []
    ledger, path = RunLedger(events.append), checkpoint(tmp_path, 1)
    with local_ray():
        async with Fleet(config_in(tmp_path), "cpu", ledger).scope() as scope:
            servers = await scope.reference_servers(path, 1.0)
            os.kill(pid(scope, "reference 0"), signal.SIGKILL)
            await answer_of(servers)
    ledger.close()
    found = balance(told(events))
    assert found.difference < 0.02
    assert found.by_role["reference"][Account.RESTART] > 1.0  # a process, its imports, its model
    assert found.by_role[DRIVER][Account.RESTART] > 1.0  # it has waited for that
    assert [event["restart"] for event in events if event["event"] == "begins"] == [False, False, True]


async def answer_of(servers: Any) -> None:
    import numpy as np

    from rlhf_ray.data.collate import TokenSequence

    await servers.response_logprobs([TokenSequence(np.arange(3, 12, dtype=np.int32), np.arange(9) > 3)])


def pid(scope: Scope, name: str) -> int:
    found = scope.monitor.process(name)
    assert found is not None, f"{name} was never heard"
    return found
