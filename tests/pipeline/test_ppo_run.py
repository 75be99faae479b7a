"""A PPO stage over fakes: what it takes up, what it leaves, and how it ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.config.checkpoints import CheckpointConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.resuming import restore_last
from rlhf_ray.stopping import StoppedError
from tests.whole_run import PPO, make_run, metrics_of, phases_of, run_context

SIX = PPO
THREE = replace(PPO, num_steps=3)


def state_steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (root / "ppo" / "state").glob("step_*"))


async def test_the_state_of_the_last_step_is_saved_whatever_the_schedule_says(tmp_path: Path) -> None:
    await make_run(run_context(tmp_path, THREE))[0].train()
    assert state_steps(tmp_path) == [2, 3]
    assert phases_of(tmp_path)[:6] == [
        (0, "start"),
        (1, "generate"),
        (1, "score"),
        (1, "update"),
        (1, "sync"),
        (2, "generate"),
    ]


async def test_a_finished_run_that_is_to_go_further_goes_on_from_its_end(tmp_path: Path) -> None:
    whole, extended = tmp_path / "whole", tmp_path / "extended"
    await make_run(run_context(whole, SIX))[0].train()
    await make_run(run_context(extended, THREE))[0].train()
    run, _, world = make_run(run_context(extended, SIX))
    await run.train()
    assert metrics_of(extended) == metrics_of(whole)
    assert [update.step for update in world.updates] == [4, 5, 6]


async def test_a_finished_run_that_is_asked_for_less_goes_back(tmp_path: Path) -> None:
    whole, shortened = tmp_path / "whole", tmp_path / "shortened"
    await make_run(run_context(whole, THREE))[0].train()
    await make_run(run_context(shortened, SIX, CheckpointConfig(keep=3)))[0].train()
    run, _, world = make_run(run_context(shortened, THREE))
    await run.train()
    assert metrics_of(shortened) == metrics_of(whole)
    assert [update.step for update in world.updates] == [3]
    assert state_steps(shortened) == [2, 3]


async def test_a_run_that_died_after_its_last_state_tells_the_same_last_step(tmp_path: Path) -> None:
    last = await make_run(run_context(tmp_path, THREE))[0].train()
    run, _, world = make_run(run_context(tmp_path, THREE))
    assert await run.train() == last
    assert world.updates == []


async def test_a_lost_trainer_is_brought_back_within_the_run(tmp_path: Path) -> None:
    run, driver, world = make_run(run_context(tmp_path, SIX))
    await run.train()
    after = world.weight
    world.weight, driver.steps_done = 123.0, 77  # what a trainer that was started anew would hold
    saved = await restore_last(run._saver.checkpoints, driver, driver.trainer, warn=pytest.fail)
    assert saved is not None
    assert (saved.step, driver.steps_done, world.weight) == (6, 6, after)


# ----------------------------------------------------------------------------------------------------- told to stop


async def stopped_at(root: Path, phase: tuple[int, str], grace_s: float, pause_s: float) -> str:
    """Train and ask to stop when the phase begins; what the run says of it."""
    context = run_context(root, SIX, CheckpointConfig(grace_s=grace_s))
    context.stop.grace_s = grace_s
    run, driver, _ = make_run(context, pause_s=pause_s)
    begin = driver.on_phase

    def ask(step: int, name: str) -> None:
        begin(step, name)
        if (step, name) == phase:
            context.stop.ask()

    driver.on_phase = ask
    with pytest.raises(StoppedError) as stopped:
        await run.train()
    return str(stopped.value)


async def goes_on_as(root: Path, whole: Path) -> None:
    await make_run(run_context(whole, SIX))[0].train()
    await make_run(run_context(root, SIX))[0].train()
    assert metrics_of(root) == metrics_of(whole)


async def test_a_step_that_has_time_is_finished_and_saved(tmp_path: Path) -> None:
    said = await stopped_at(tmp_path / "run", (3, "update"), grace_s=60.0, pause_s=0.01)
    assert said == "PPO was told to stop and has, after 3 of 6 steps; its state after step 3 is saved"
    assert state_steps(tmp_path / "run") == [2, 3]
    await goes_on_as(tmp_path / "run", tmp_path / "whole")


async def test_a_step_without_time_that_has_not_trained_is_given_up_and_the_one_before_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.FakeReference.logprobs", forever)
    said = await stopped_at(tmp_path / "run", (4, "score"), grace_s=0.2, pause_s=0.0)
    assert said == "PPO was told to stop and has, after 3 of 6 steps; its state after step 3 is saved"
    assert state_steps(tmp_path / "run") == [2, 3]
    monkeypatch.undo()
    await goes_on_as(tmp_path / "run", tmp_path / "whole")


async def forever(reference: object, shard: object) -> str:
    """Reference log-probabilities that never come, from the fourth step on."""
    if shard.summaries[0].rollout_id.startswith("4/"):  # type: ignore[attr-defined]
        await asyncio.Event().wait()
    return "ref_logprobs"


async def test_a_step_without_time_that_trains_is_given_up_and_the_last_state_stays(tmp_path: Path) -> None:
    said = await stopped_at(tmp_path / "run", (4, "update"), grace_s=0.01, pause_s=1.0)
    assert said == "PPO was told to stop and has, after 3 of 6 steps; its state after step 2 is saved"
    await goes_on_as(tmp_path / "run", tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------- the mirror
async def test_a_run_whose_directory_is_lost_goes_on_from_the_mirror(tmp_path: Path) -> None:
    mirror = CheckpointConfig(mirror=f"file://{tmp_path}/mirror")
    whole, lost, elsewhere = (tmp_path / name for name in ("whole", "lost", "elsewhere"))
    await make_run(run_context(whole, SIX))[0].train()
    await make_run(run_context(lost, THREE, mirror))[0].train()
    run, _, world = make_run(run_context(elsewhere, SIX, mirror))
    await run.train()
    assert [update.step for update in world.updates] == [4, 5, 6]
    assert metrics_of(elsewhere) == metrics_of(whole)  # the log came with the state


async def test_a_mirror_with_another_run_is_refused(tmp_path: Path) -> None:
    mirror = CheckpointConfig(mirror=f"file://{tmp_path}/mirror")
    await make_run(run_context(tmp_path / "one", THREE, mirror))[0].train()
    context = run_context(tmp_path / "other", THREE, mirror)
    context.store.begin("ppo", "another key", "another base")
    with pytest.raises(ConfigError, match=r"checkpoints\.mirror .* holds the states of a run with other settings"):
        await make_run(context)[0].train()


async def test_the_best_step_is_saved_off_schedule_and_kept(tmp_path: Path) -> None:
    best = CheckpointConfig(keep=1, best_metric="ppo/score_mean")
    ppo = replace(SIX, checkpoint_every=100)
    await make_run(run_context(tmp_path, ppo, best))[0].train()
    scores: Mapping[int, float] = {step: row["ppo/score_mean"] for step, row in metrics_of(tmp_path)}
    assert state_steps(tmp_path) == sorted({6, max(scores, key=lambda step: scores[step])})
