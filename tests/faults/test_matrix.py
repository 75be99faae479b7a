"""The fault matrix, but for generators (test_generators.py): a victim, a phase, and the run as if nothing had happened.

One cluster and one set of actors for all rows; a case begins with the same weights and must end with the same bits.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from actors.fleet import Fleet
from tests.clusters import local_ray
from tests.faults.table import Stopwatch, fault_case
from tests.faults.world import Faults, Trajectory, World, config_for, injected, start

pytestmark = [
    pytest.mark.faults,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.asyncio(loop_scope="module"),
]
HEARTBEAT_S = 20.0
SAME = "same bits as without"


class Run:
    """The world, the run without faults, and what was said since a case began."""

    def __init__(self, world: World, faults: Faults, undisturbed: Trajectory) -> None:
        self.world, self.faults, self.undisturbed = world, faults, undisturbed
        self.said: list[str] = []
        self.on_say: Callable[[], None] = lambda: None

    def say(self, message: str) -> None:
        print(message, flush=True)
        self.said.append(message)
        self.on_say()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Run]:
    directory = tmp_path_factory.mktemp("faults")
    config = config_for(directory, heartbeat_timeout_s=HEARTBEAT_S)
    with injected(directory / "injected") as faults, local_ray():
        async with Fleet(config, "cpu").scope() as scope:
            world = await start(scope, config, directory)
            run = Run(world, faults, await world.run())
            with pytest.MonkeyPatch.context() as patch:
                for module in ("crew", "monitor", "lasting", "replicas", "room"):
                    patch.setattr(f"actors.{module}.say", run.say)
                yield run


async def disturbed(run: Run, watch: Stopwatch) -> None:
    """Run with what is armed; the trajectory must be the one without."""
    run.said.clear()
    run.on_say = watch.noticed
    before = run.faults.num_done
    watching = asyncio.create_task(struck(run.faults, before, watch))
    try:
        found = await run.world.run()
    finally:
        watching.cancel()
    watch.recovered()
    assert run.faults.num_done == before + 1, "the fault did not happen"
    assert found == run.undisturbed


async def struck(faults: Faults, before: int, watch: Stopwatch) -> None:
    while faults.num_done == before:
        await asyncio.sleep(0.02)
    watch.struck()


@pytest.mark.parametrize(
    ("actor", "function", "phase"),
    [
        ("reference 0", "ReferenceEngine.logprobs", "scoring"),
        ("reward_model 0", "RewardEnsemble.grade", "scoring"),
        ("trainer 1", "TrainingEngine.forward", "forward"),
        ("trainer 0", "TrainingEngine.backward", "backward"),
        ("trainer 1", "TrainingEngine.step", "step"),
        ("trainer 0", "TrainingEngine.save_state", "save"),
        ("trainer 0", "SharedMemorySender.offer", "sync"),
    ],
)
async def test_an_actor_that_dies_leaves_the_trajectory_as_it_is(
    run: Run, actor: str, function: str, phase: str
) -> None:
    call = {"save": 2, "sync": 3}.get(phase, 4)  # the critic's state; the second step's weights; in mid-update
    with fault_case(actor, phase, SAME) as watch:
        run.faults.arm(actor, function, "kill", call)
        await disturbed(run, watch)
    assert any("started again" in message for message in run.said)


@pytest.mark.parametrize("actor", ["reference 0", "reward_model 0"])
async def test_a_server_that_dies_idle_is_replaced_when_it_is_asked_next(run: Run, actor: str) -> None:
    with fault_case(actor, "idle", SAME) as watch:
        run.on_say = watch.noticed
        os.kill(run.world.process(actor), signal.SIGKILL)
        watch.struck()
        found = await run.world.run()
        watch.recovered()
        assert found == run.undisturbed


@pytest.mark.parametrize(
    ("actor", "function", "phase"),
    [
        ("reference 0", "ReferenceEngine.logprobs", "stopped, scoring"),
        ("trainer 1", "TrainingEngine.backward", "stopped, backward"),
    ],
)
async def test_an_actor_that_is_stopped_is_noticed_and_says_as_much_as_the_kernel_knows(
    run: Run, actor: str, function: str, phase: str
) -> None:
    stacks = run.world.directory / "stacks"
    before = set(stacks.glob("*")) if stacks.exists() else set()
    with fault_case(actor, phase, SAME) as watch:
        run.faults.arm(actor, function, "stop", 2)
        await disturbed(run, watch)
    assert any(f"{actor} has given no sign of life for" in message for message in run.said)
    (dump,) = set(stacks.glob("*")) - before
    assert_stacks(dump, stopped=actor)


def assert_stacks(dump: Path, *, stopped: str) -> None:
    """Everybody else says where it is; of the stopped one the kernel says that it is stopped."""
    parts = dict(part.split("\n", 1) for part in dump.read_text().split("==== ")[1:])
    assert parts.keys() == {"trainer 0", "trainer 1", "reference 0", "reward_model 0"}
    assert "State:\tT (stopped)" in parts[stopped]
    for name in parts.keys() - {stopped}:
        assert 'File "' in parts[name], name


async def test_rollouts_that_no_server_survives_end_the_step_with_their_names(run: Run) -> None:
    from rlhf_ray.supervision.suspects import PoisonError

    with fault_case("reward_model 0", "scoring, every time", "error names the rollouts") as watch:
        shard = run.world.shards()[0]
        run.on_say = lambda: (watch.noticed(), run.faults.arm("reward_model 0", "RewardEnsemble.grade", "kill", 1))
        run.faults.arm("reward_model 0", "RewardEnsemble.grade", "kill", 1)
        watch.struck()
        with pytest.raises(PoisonError, match=r"3 times in a row .* the same 3 rollouts .*: p0/0, p1/0, p2/0"):
            await run.world.rewards.score(shard)
        watch.recovered()
    (run.faults.directory / "reward_model 0@RewardEnsemble.grade").unlink(missing_ok=True)
