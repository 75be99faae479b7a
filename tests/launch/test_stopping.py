"""SIGTERM: a stage that listens has its time, anything else ends at once, and the exit status says which it was."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import typer

from launch.command import guard
from launch.jobs import end_on_sigterm
from rlhf_ray.stopping import EXIT_STATUS, Stop, StoppedError


async def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.05)  # the loop hears of a signal in its next round


async def test_a_stage_that_listens_is_asked_and_goes_on() -> None:
    stop, heard = Stop(grace_s=30.0), asyncio.Event()
    end_on_sigterm(stop)
    stop.listen(heard.set)
    await terminate()
    assert heard.is_set()


async def ended_by(stop: Stop, signals: int, *, listens: bool) -> str:
    """How a task ends that waits for ever: "cancelled", or "waiting" where it has not."""

    async def run() -> None:
        end_on_sigterm(stop)
        if listens:
            stop.listen(lambda: None)
        await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    for _ in range(signals):
        await terminate()
    await asyncio.wait({task}, timeout=0.5)
    ended = "cancelled" if task.done() and task.cancelled() else "waiting"
    task.cancel()
    return ended


async def test_without_a_listener_the_run_ends_at_once() -> None:
    stop = Stop(grace_s=30.0)
    assert await ended_by(stop, 1, listens=False) == "cancelled"
    assert stop.asked  # so that it ends as one that was told to


async def test_a_second_signal_ends_a_run_that_is_still_saving() -> None:
    assert await ended_by(Stop(grace_s=30.0), 1, listens=True) == "waiting"
    assert await ended_by(Stop(grace_s=30.0), 2, listens=True) == "cancelled"


async def test_the_grace_period_ends() -> None:
    assert await ended_by(Stop(grace_s=0.1), 1, listens=True) == "cancelled"


def test_a_run_that_was_told_to_stop_has_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        raise StoppedError("PPO was told to stop and has, after 3 of 6 steps; its state after step 3 is saved")

    with pytest.raises(typer.Exit) as ended:
        guard(stopped)
    assert ended.value.exit_code == EXIT_STATUS == 75
    assert capsys.readouterr().err == (
        "stopped: PPO was told to stop and has, after 3 of 6 steps; its state after step 3 is saved; the same command "
        "goes on from there\n"
    )
