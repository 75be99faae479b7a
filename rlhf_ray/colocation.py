"""Generators and trainer on the same GPUs (``ppo.schedule=colocate``): the ones sleep while the other computes.

Generators wake by themselves: for the weights of the next sync, in two stages, or for whoever asks them for something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rlhf_ray.roles import PpoTrainer, ScoredShard
from rlhf_ray.wrapped import WrappedTrainer


class Sleeper(Protocol):
    async def sleep(self) -> None:
        """Give back what memory can be; nothing happens on a CPU, where there is none to give back."""
        ...


class TrainsAlone(WrappedTrainer):
    """A trainer before whose updates the generators go to sleep."""

    def __init__(self, trainer: PpoTrainer, generators: Sleeper) -> None:
        super().__init__(trainer)
        self._generators = generators

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        await self._generators.sleep()
        return await super().update(step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)
