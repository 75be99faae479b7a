"""Rollouts that vanish with a node: they are sampled again, and the run is the one that lost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rlhf_ray.collecting import MAX_LOST
from rlhf_ray.config.algorithm import FilterConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.driver import Driver
from rlhf_ray.errors import BlockLostError
from rlhf_ray.records import Score
from rlhf_ray.roles import Ref, RolloutShard, ScoredShard
from tests.fakes import World, make_driver, run_driver

CONFIG = PpoConfig(num_steps=3, rollouts_per_step=6, num_minibatches=1)
CASES: Mapping[str, PpoConfig] = {
    "ppo": CONFIG,
    "remax": replace(CONFIG, advantages="remax"),
    "filtered, scores normalised": replace(
        CONFIG,
        rollouts_per_step=8,
        responses_per_prompt=2,
        advantages="rloo",
        filter=FilterConfig(enabled=True),
        reward=replace(CONFIG.reward, normalise_scores=True),
    ),
}


class Loses:
    """Stands before a role: loses what it is given at the calls in ``at``."""

    def __init__(self, role: Any, at: Sequence[int]) -> None:
        self.role, self.at, self.calls = role, set(at), 0

    def called(self) -> None:
        self.calls += 1
        if self.calls in self.at:
            raise BlockLostError("a block is gone")

    async def logprobs(self, shard: RolloutShard) -> Ref:
        self.called()
        return await self.role.logprobs(shard)

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        self.called()
        scores: tuple[Score, ...] = await self.role.score(shard)
        return scores

    async def update(self, *, shards: Sequence[ScoredShard], **others: Any) -> Mapping[str, float]:
        self.called()
        metrics: Mapping[str, float] = await self.role.update(shards=shards, **others)
        return metrics

    def __getattr__(self, name: str) -> Any:
        return getattr(self.role, name)


def driver_of(config: PpoConfig, role: str = "", at: Sequence[int] = ()) -> tuple[Driver, World, list[str]]:
    said: list[str] = []
    driver, world = make_driver(config, warn=said.append)
    if role:
        owner = driver if role == "trainer" else driver.collector
        setattr(owner, role, Loses(getattr(owner, role), at))
    return driver, world, said


@pytest.mark.parametrize("role", ["reference", "reward_model", "trainer"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at", [(1,), (2,), (2, 3), (3,)])
async def test_a_run_that_loses_blocks_is_the_run_that_lost_none(role: str, case: str, at: tuple[int, ...]) -> None:
    calm, calm_world, _ = driver_of(CASES[case])
    wanted = await run_driver(calm)
    driver, world, said = driver_of(CASES[case], role, at)
    assert await run_driver(driver) == wanted
    assert world.weight == calm_world.weight
    assert [update.pairs for update in world.updates] == [update.pairs for update in calm_world.updates]
    assert len(said) == len(at)
    assert all("sampled again: a block is gone" in line for line in said)


@pytest.mark.parametrize("role", ["reference", "trainer"])
async def test_what_vanishes_again_and_again_ends_the_run(role: str) -> None:
    driver, _, said = driver_of(CONFIG, role, range(1, 1000))
    with pytest.raises(BlockLostError, match="a block is gone"):
        await run_driver(driver)
    assert len(said) >= MAX_LOST
