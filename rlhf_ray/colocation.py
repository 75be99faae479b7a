"""Generators and trainer on the same GPUs (``ppo.schedule=colocate``): the ones sleep while the other computes.

Generators wake by themselves: for the weights of the next sync, in two stages, or for whoever asks them for something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rlhf_ray.roles import PpoTrainer, ScoredShard


class Sleeper(Protocol):
    async def sleep(self) -> None:
        """Give back what memory can be; nothing happens on a CPU, where there is none to give back."""
        ...


class TrainsAlone:
    """A trainer before whose updates the generators go to sleep."""

    def __init__(self, trainer: PpoTrainer, generators: Sleeper) -> None:
        self._trainer, self._generators = trainer, generators

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        await self._generators.sleep()
        return await self._trainer.update(step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)

    async def keep_failure(self, directory: str) -> str:
        return await self._trainer.keep_failure(directory)

    async def save_state(self, directory: str, tag: str) -> None:
        await self._trainer.save_state(directory, tag)

    async def load_state(self, directory: str, tag: str) -> None:
        await self._trainer.load_state(directory, tag)

    def checkpointed(self, directory: str, tag: str, step: int) -> None:
        self._trainer.checkpointed(directory, tag, step)

    async def save(self, directory: str) -> None:
        await self._trainer.save(directory)
