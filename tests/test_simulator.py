"""The simulator of benchmarks/: its clock, its accounts, and small fleets that lose nodes, grow and shrink."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import replace

import pytest

from benchmarks import simulated_time
from benchmarks.simulated_accounts import AccountError, Ledger, Stopwatch
from benchmarks.simulated_fleet import Measured
from benchmarks.simulator import HEAD, Setup, row, simulate, sizing_lines
from rlhf_ray.records import RolloutSummary
from rlhf_ray.roles import ScoredShard
from rlhf_ray.supervision.sizing import SizingRule

MEASURED = Measured("made up", (4.0, 8.0, 12.0), (90.0, 110.0), (1.0, 1.2), (0.1,), (0.5, 0.6))
SMALL = Setup(generators=4, deaths_per_node_hour=0.0, steps=6, rollouts_per_step=128)


def test_time_jumps_from_timer_to_timer_and_every_clock_says_so() -> None:
    async def hours() -> list[float]:
        begun = time.monotonic()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 600)
        return [begun, time.monotonic(), time.perf_counter()]

    before = time.monotonic()
    assert simulated_time.run(hours()) == pytest.approx([0.0, 7800.0, 7800.0])
    assert time.monotonic() - before < 600


def test_tasks_that_nothing_will_wake_are_an_error() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(simulated_time.StalledError):
        simulated_time.run(forever())


def test_a_fleet_that_loses_nodes_trains_on_every_prompt_once() -> None:
    calm = simulate(SMALL, MEASURED)
    harsh = simulate(replace(SMALL, deaths_per_node_hour=20.0, steps=20), MEASURED)
    assert (calm.deaths, calm.requeued_shards, calm.counted) == (0, 0, 6 * 128)
    assert harsh.deaths >= 3
    assert harsh.hangs >= 1
    assert harsh.requeued_shards >= 1
    assert harsh.restarts >= 3
    assert harsh.counted == 20 * 128


def test_a_collection_within_the_parts_is_none_of_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch, clock = Stopwatch(), iter([1.0, 2.0, 5.0, 6.0])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    with stopwatch:  # from 1 to 6, of which 2 to 5 collects
        stopwatch._collected("start", {})
        stopwatch._collected("stop", {})
    assert stopwatch.seconds == 2.0


def test_collections_are_heard_of_within_the_block_alone() -> None:
    stopwatch = Stopwatch()
    before = list(gc.callbacks)
    with stopwatch.watching_collections():
        gc.collect()
    assert stopwatch._collecting > 0.0
    assert gc.callbacks == before


def test_the_drivers_and_the_parts_seconds_are_those_of_the_process() -> None:
    outcome = simulate(SMALL, MEASURED)
    whole = sum(step.cpu_s for step in outcome.steps[1:])
    assert outcome.driver_cpu_s + outcome.parts_cpu_s == pytest.approx(whole)
    assert outcome.driver_cpu_s > 0.0 < outcome.parts_cpu_s
    assert row(outcome).count("|") == len(HEAD) + 1


def test_a_simulation_depends_on_its_seed_alone() -> None:
    harsh = replace(SMALL, deaths_per_node_hour=20.0)
    ends = [[step.at_s for step in simulate(setup, MEASURED).steps] for setup in (harsh, harsh, replace(harsh, seed=1))]
    assert ends[0] == ends[1] != ends[2]


def test_a_fleet_grows_when_responses_get_longer_and_shrinks_again() -> None:
    rule = SizingRule(min_size=2, max_size=8, grow_above=0.8, shrink_above=0.5, patience=2, cooldown_s=0.0)
    sized = simulate(replace(SMALL, sizing=rule, steps=60, load={5: 10.0, 30: 0.2}), MEASURED)
    sizes = [step.generators for step in sized.steps]
    assert max(sizes) > sizes[4]
    assert sizes[-1] < max(sizes)
    assert all(rule.min_size <= size <= rule.max_size for size in sizes)
    assert len(sizing_lines(sized)) > 7


@pytest.mark.parametrize("damage", ["lost", "doubled", "swapped", "none"])
def test_the_accounts_find_a_prompt_that_is_lost_doubled_or_another(damage: str) -> None:
    class Trainer:
        async def update(self, **_: object) -> dict[str, float]:
            return {}

    numbers = {"lost": [0], "doubled": [0, 0], "swapped": [0, 2], "none": [0, 1]}[damage]
    rows = [RolloutSummary(f"1/p{n}/0", f"p{n}", n, 1, 1, "stop", 1) for n in numbers]
    ledger = Ledger(Trainer(), Stopwatch(), per_step=2)
    update = ledger.update(step=1, shards=[ScoredShard((row,), None, None, ()) for row in rows])
    if damage == "none":
        asyncio.run(update)
        assert ledger.counted == 2
    else:
        with pytest.raises(AccountError, match="step 1"):
            asyncio.run(update)
