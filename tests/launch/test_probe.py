"""The probe's small steps, with fakes; and with the real parts where integration tests run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from launch import probe
from launch.probe import PpoActors, calibrate, key_of, measure, small_step
from rlhf_ray.config.load import load_config
from rlhf_ray.driver import Driver, Roles
from rlhf_ray.planning.calibration import Calibration
from tests.fakes import World, make_driver
from tests.small import SMALL

CONFIG = load_config("configs/quickstart.yaml")


def fakes() -> tuple[PpoActors, World]:
    driver, world = make_driver(CONFIG.ppo, shard_size=4)
    parts = driver.collector
    roles = Roles(parts.generator, parts.reference, parts.reward_model, driver.trainer, driver.weights)
    return PpoActors(CONFIG, roles, driver), world


async def test_a_small_step_trains_and_syncs_as_many_rollouts_as_asked() -> None:
    actors, world = fakes()
    await actors.driver.sync_weights()
    point, shards = await small_step(actors, 10)
    assert point.rollouts == 10 == sum(len(shard.summaries) for shard in shards)
    assert point.prompt_tokens == 20
    assert point.response_tokens == sum(s.response_length for shard in shards for s in shard.summaries)
    assert point.longest == max(s.response_length for shard in shards for s in shard.summaries)
    assert [event for event in world.events if event.startswith(("update", "sync"))] == ["sync 1", "update 1", "sync 2"]


async def test_a_probe_warms_up_and_measures_three_sizes() -> None:
    actors, world = fakes()
    found = await measure(actors)
    assert [point.rollouts for point in found.points] == [16, 64, 32]  # of 128
    assert [len(update.pairs) for update in world.updates] == [16, 16, 64, 32]
    assert found.engine_tokens_per_second > 0
    assert found.reference_tokens_per_second > 0


def test_a_cached_calibration_is_used_while_the_settings_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors, _ = fakes()
    started: list[Driver] = []

    class Started:
        async def __aenter__(self) -> PpoActors:
            started.append(actors.driver)
            return actors

        async def __aexit__(self, *_: object) -> None: ...

    monkeypatch.setattr(probe, "ppo_actors", lambda *_: Started())
    config = load_config("configs/quickstart.yaml", [f"output_dir={tmp_path}"])

    def calibrated() -> Calibration:
        return asyncio.run(calibrate(config, command="test"))

    assert calibrated() == calibrated()
    assert len(started) == 1
    assert key_of(config) != key_of(load_config("configs/quickstart.yaml", ["training.num_ranks=2"]))
    assert key_of(config) == key_of(CONFIG)  # the directory does not matter


@pytest.mark.integration
@pytest.mark.slow
def test_the_real_parts_are_measured_with_stand_ins_for_models_that_are_not_there(tmp_path: Path) -> None:
    overrides = [*SMALL, "generation.num_engines=1", "cluster.address=local", f"output_dir={tmp_path}"]
    found = asyncio.run(calibrate(load_config("configs/quickstart.yaml", overrides), command="test"))
    assert [point.rollouts for point in found.points] == [2, 8, 4]
    assert all(point.generate > 0 and point.update > 0 and point.sync > 0 for point in found.points)
    assert (tmp_path / "probe" / "calibration.json").is_file()
    assert not (tmp_path / "sft").exists()  # what stands in is kept apart from the run's own
