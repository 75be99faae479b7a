"""A PPO trainer behind another one that does something more: what it does not say itself is handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_ray.roles import PpoTrainer, ScoredShard


class WrappedTrainer:
    """Hands every verb on to ``trainer``; who derives from it says what is different."""

    def __init__(self, trainer: PpoTrainer) -> None:
        self._trainer = trainer

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
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
