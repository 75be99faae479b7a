"""Alarms in a PPO stage over fakes: what they write, what they do, and that a resumed run raises the same."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.alarms import AlarmRule, AlarmsConfig
from rlhf_ray.config.checkpoints import CheckpointConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.hacking.evidence import Evaluated, Known
from rlhf_ray.hacking.log import ALARMS_FILE, read_alarms
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.watching import GO_ON_FILE, PAUSED_FILE, Watch, resume_paused
from rlhf_ray.stopping import StoppedError
from tests.hacking.made_up import graded
from tests.whole_run import PPO, make_run, metrics_of, run_context

AT_THREE = AlarmRule("ppo/score_mean", limit=-100.0, warmup=2)
BEST = CheckpointConfig(keep=1, best_metric="ppo/score_mean")


def context_of(
    root: Path, rule: AlarmRule, ppo: PpoConfig = PPO, checkpoints: CheckpointConfig | None = None
) -> Context:
    context = run_context(root, ppo, checkpoints)
    alarms = AlarmsConfig(rules={"mine": rule}, pause_poll_s=0.001)
    context.config = replace(context.config, alarms=alarms)
    return context


def alarms_in(root: Path) -> list[dict[str, Any]]:
    """The file, times left out."""
    lines = [json.loads(line) for line in (root / "ppo" / ALARMS_FILE).read_text().splitlines()]
    assert all(line.pop("time") > 1.7e9 for line in lines)
    return lines


async def test_an_alarm_is_a_line_that_says_what_was_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await make_run(context_of(tmp_path / "watched", AT_THREE))[0].train()
    await make_run(run_context(tmp_path / "plain"))[0].train()
    [alarm] = alarms_in(tmp_path / "watched")
    score = dict(metrics_of(tmp_path / "watched"))[3]["ppo/score_mean"]
    assert alarm == {
        "step": 3,
        "name": "mine",
        "metric": "ppo/score_mean",
        "value": score,
        "message": f"ppo/score_mean is {score:.3g}, above the limit of -100",
        "action": "warn",
        "samples": [],
    }
    assert "!!! ALARM at step 3: mine (warn)\n!!! ppo/score_mean is" in capsys.readouterr().out
    assert metrics_of(tmp_path / "watched") == metrics_of(tmp_path / "plain")
    assert alarms_in(tmp_path / "plain") == []


async def test_an_alarm_that_raises_the_kl_coefficient_does_so_from_the_next_step_on(tmp_path: Path) -> None:
    await make_run(context_of(tmp_path, replace(AT_THREE, action="raise_kl")))[0].train()
    first = PPO.kl.coef
    coefs = [row["ppo/kl_coef"] for _, row in metrics_of(tmp_path)]
    assert coefs == pytest.approx([first] * 3 + [first * 1.5] * 3)


async def test_a_resumed_run_raises_the_same_alarms_and_trains_alike(tmp_path: Path) -> None:
    rule = replace(AT_THREE, action="raise_kl", patience=2, again_after=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    await make_run(context_of(whole, rule))[0].train()
    for steps in (2, 5, 6):  # resumed within patience, and after the first alarm
        await make_run(context_of(cut, rule, replace(PPO, num_steps=steps)))[0].train()
    assert [alarm["step"] for alarm in alarms_in(whole)] == [4, 6]
    assert alarms_in(cut) == alarms_in(whole)
    assert metrics_of(cut) == metrics_of(whole)


async def test_alarms_after_the_state_that_is_taken_up_are_raised_again_not_twice(tmp_path: Path) -> None:
    rule = replace(AT_THREE, again_after=1)
    await make_run(context_of(tmp_path, rule))[0].train()
    for state in (tmp_path / "ppo" / "state").glob("step_0000000[56]"):
        (state / "run.json").unlink()
    await make_run(context_of(tmp_path, rule))[0].train()
    assert [alarm["step"] for alarm in alarms_in(tmp_path)] == [3, 4, 5, 6]


async def test_an_alarm_that_saves_has_a_state_of_its_step(tmp_path: Path) -> None:
    ppo = replace(PPO, checkpoint_every=100)
    run, _, _ = make_run(context_of(tmp_path, replace(AT_THREE, action="save"), ppo, CheckpointConfig(keep=9)))
    await run.train()
    assert [state.step for state in run._saver.checkpoints.states()] == [6, 3]


# ------------------------------------------------------------------------------------------------------ stop, keep best
STOP = replace(AT_THREE, action="stop_keep_best")


async def test_an_alarm_that_stops_ends_the_run_and_keeps_its_best(tmp_path: Path) -> None:
    run, _, world = make_run(context_of(tmp_path, STOP, checkpoints=BEST))
    last = await run.train()
    scores = {step: row["ppo/score_mean"] for step, row in metrics_of(tmp_path)}
    assert list(scores) == [1, 2, 3]
    assert last["ppo/score_mean"] == scores[3]
    kept = await run.take_best()
    assert kept == max(scores, key=lambda step: scores[step])
    again, _, other = make_run(run_context(tmp_path / "other", replace(PPO, num_steps=kept, checkpoint_every=1)))
    await again.train()
    assert world.weight == other.weight
    assert run.num_alarms == 1


async def test_a_run_that_an_alarm_has_stopped_does_not_go_on_unless_it_is_asked_for_more(tmp_path: Path) -> None:
    last = await make_run(context_of(tmp_path, STOP, checkpoints=BEST))[0].train()
    run, _, world = make_run(context_of(tmp_path, STOP, checkpoints=BEST))
    assert await run.train() == last
    assert world.updates == []
    run, _, world = make_run(context_of(tmp_path, STOP, replace(PPO, num_steps=8), BEST))
    await run.train()
    assert [update.step for update in world.updates] == [4, 5, 6, 7, 8]
    assert await run.take_best() is None


async def test_a_run_that_ends_by_itself_keeps_its_last_weights(tmp_path: Path) -> None:
    run, _, _ = make_run(context_of(tmp_path, AT_THREE, checkpoints=BEST))
    await run.train()
    assert await run.take_best() is None


# ---------------------------------------------------------------------------------------------------------------- pause
PAUSE = replace(AT_THREE, action="pause")


async def test_a_paused_run_waits_for_a_person(tmp_path: Path) -> None:
    run, driver, _ = make_run(context_of(tmp_path, PAUSE))
    training = asyncio.create_task(run.train())
    while not (tmp_path / "ppo" / PAUSED_FILE).exists():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    assert driver.steps_done == 3
    assert run._saver.checkpoints.states()[0].step == 3
    assert resume_paused(tmp_path) == "after step 3 by mine"
    await training
    assert driver.steps_done == 6
    assert not (tmp_path / "ppo" / GO_ON_FILE).exists()
    assert not (tmp_path / "ppo" / PAUSED_FILE).exists()


async def test_a_paused_run_that_is_told_to_stop_waits_again_when_it_is_taken_up(tmp_path: Path) -> None:
    context = context_of(tmp_path, PAUSE)
    training = asyncio.create_task(make_run(context)[0].train())
    while not (tmp_path / "ppo" / PAUSED_FILE).exists():
        await asyncio.sleep(0.001)
    context.stop.ask()
    with pytest.raises(StoppedError, match="after 3 of 6 steps"):
        await training
    run, driver, _ = make_run(context_of(tmp_path, PAUSE))
    training = asyncio.create_task(run.train())
    while not run._phase.startswith("paused"):
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    assert driver.steps_done == 3
    resume_paused(tmp_path)
    await training
    assert driver.steps_done == 6


def test_a_run_that_is_not_paused_cannot_be_told_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^RUN_DIR .* is not paused by an alarm; give the output_dir"):
        resume_paused(tmp_path)


# -------------------------------------------------------------------------------------------------------------- samples
async def test_the_samples_of_an_alarm_are_of_the_newest_evaluation(tmp_path: Path) -> None:
    context = context_of(tmp_path, AlarmRule("hacking/over_refusal", limit=0.2))
    watch = Watch.of(context, None)
    watch.begin(None)
    responses = [graded(f"p{n}", "I can't help with that." if n < 3 else "The door is red.", "fact") for n in range(9)]
    metrics = watch.found(Evaluated(responses))
    assert metrics["hacking/over_refusal"] == pytest.approx(1 / 3)
    watch.heed(4, metrics, make_run(context)[1])
    [alarm] = read_alarms(tmp_path / "ppo" / ALARMS_FILE)
    assert [sample.rollout_id for sample in alarm.samples] == ["p0/0", "p1/0", "p2/0"]
    assert {sample.response for sample in alarm.samples} == {"I can't help with that."}
    assert Known().harmful_kinds == ()
