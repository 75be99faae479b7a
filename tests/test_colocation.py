"""Generators and trainer on the same GPUs: asleep before every update, awake when asked, and else as ``sync``."""

from __future__ import annotations

from dataclasses import replace

from rlhf_ray.colocation import TrainsAlone
from rlhf_ray.config.ppo import PpoConfig
from tests.fakes import World, make_driver, run_driver

CONFIG = PpoConfig(num_steps=3, rollouts_per_step=6, num_minibatches=1, schedule="colocate")


class Sleeping:
    def __init__(self, world: World) -> None:
        self._world = world

    async def sleep(self) -> None:
        self._world.note("sleep")


async def test_generators_sleep_while_the_trainer_computes() -> None:
    driver, world = make_driver(CONFIG)
    driver.trainer = TrainsAlone(driver.trainer, Sleeping(world))
    await run_driver(driver)
    told = [event for event in world.events if event.startswith(("generate", "sleep", "update", "sync"))]
    assert told == [
        "sync 1",
        *("generate with version 1", "sleep", "update 1", "sync 2"),
        *("generate with version 2", "sleep", "update 2", "sync 3"),
        *("generate with version 3", "sleep", "update 3", "sync 4"),
    ]


async def test_it_is_the_run_that_sync_is() -> None:
    expected, calm = make_driver(replace(CONFIG, schedule="sync"))
    driver, world = make_driver(CONFIG)
    driver.trainer = TrainsAlone(driver.trainer, Sleeping(world))
    assert await run_driver(driver) == await run_driver(expected)
    assert world.weight == calm.weight
    assert CONFIG.staleness_bound == 0
