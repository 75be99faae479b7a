"""Killed at any moment, a run goes on as if nothing had happened: the real loop and states, and real deaths."""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.algorithm import CorrectionConfig
from tests.whole_run import PPO, metrics_of, phases_of, run_to_the_end, trained_in

NUM_KILLS = 20
PAUSE_S = 0.004
NUM_STEPS = 80
LONG = {
    "sync": replace(PPO, num_steps=NUM_STEPS),
    "one_step_off": replace(
        PPO, num_steps=NUM_STEPS, schedule="one_step_off", correction=CorrectionConfig(level="token")
    ),
}
WITHIN_S = 120.0


def start(root: Path, schedule: str) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.whole_run"])  # the imports once, not with every life
    process = context.Process(target=run_to_the_end, args=(root, LONG[schedule], PAUSE_S), daemon=True)
    process.start()
    return process


def kill_after(process: Any, root: Path, num_phases: int, delay_s: float) -> str:
    """SIGKILL a moment after so many more phases have begun; the phase that it was killed in."""
    before, deadline = len(phases_of(root)), time.monotonic() + WITHIN_S
    while len(phases_of(root)) < before + num_phases:
        assert process.is_alive(), "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay_s)
    process.kill()
    process.join(WITHIN_S)
    return phases_of(root)[-1][1]


@pytest.mark.integration
@pytest.mark.parametrize("schedule", LONG)
def test_twenty_kills_at_random_moments_change_no_bit_and_lose_no_prompt(tmp_path: Path, schedule: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(whole, schedule)
    moments = random.Random(11)
    phases = {
        kill_after(start(killed, schedule), killed, moments.randint(3, 16), PAUSE_S * moments.random())
        for _ in range(NUM_KILLS)
    }
    last = start(killed, schedule)
    for process in (undisturbed, last):
        process.join(WITHIN_S)
        assert process.exitcode == 0
    assert metrics_of(killed) == metrics_of(whole)
    assert {"update", "save"} <= phases  # the kills were not all in one place
    once = trained_in(whole)
    assert [len(attempts) for attempts in once.values()] == [1] * NUM_STEPS
    for step, attempts in trained_in(killed).items():
        assert all(attempt == once[step][0] for attempt in attempts)
    assert trained_in(killed).keys() == once.keys()
    assert any(len(attempts) > 1 for attempts in trained_in(killed).values())  # some steps were done again
