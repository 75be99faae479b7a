"""Trainers that outlive their ranks: a new group takes the last state and the steps since, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

from actors.answers import ActorDiedError, ActorTimeoutError
from actors.groups import TRAINER_RANK, PpoTrainerGroup, TrainerGroup
from actors.messages import say
from actors.restarts import restart_allowed
from rlhf_ray.errors import BlockLostError, NumericsError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.roles import ScoredShard
from rlhf_ray.stages.ppo_failure import Findings
from rlhf_ray.supervision.budget import RestartBudget
from rlhf_ray.supervision.journal import Journal, Kept, KeptBatch, KeptStep, NoWayBackError, SavedTrainer

T = TypeVar("T")
K = TypeVar("K", bound=Kept)
G = TypeVar("G", TrainerGroup, PpoTrainerGroup)
Restart = Callable[[str], Awaitable[None]]
Lost = ActorDiedError | ActorTimeoutError | BlockLostError


class Lasting(ABC, Generic[K, G]):
    """A trainer with a journal. ``restart(reason)`` replaces every rank and builds the first models again.

    A rank that is gone takes the group with it: the others wait for it in a collective, or were told that it left. The
    same steps on the same data give the same weights, so that the run goes on as if nothing had happened.
    """

    def __init__(
        self,
        trainer: G,
        *,
        restart: Restart,
        budget: RestartBudget,
        journal: Journal[K],
        recovering: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._trainer: G = trainer
        self._restart = restart
        self._budget = budget
        self._journal = journal
        self._recovering = recovering  # surrounds the time that it takes
        self._busy = asyncio.Lock()
        self.incarnation = 0  # how often all ranks were replaced

    @property
    def ranks(self) -> list[Any]:
        return self._trainer.ranks

    @abstractmethod
    async def _take(self, kept: K) -> Any:
        """Do one update, and return what the ranks say of it."""

    # ---------------------------------------------------------------------------------------------------------- verbs
    async def _taken(self, kept: K) -> Any:
        """An update that is kept, for a trainer that is lost later.

        Where rollouts are gone the ranks begin anew, since some may wait for the others: raises BlockLostError, and the
        step can be taken with rollouts that were sampled again.
        """
        try:
            found = await self.lasting(lambda: self._take(kept))
        except NumericsError:
            self._journal.trained(kept)  # the minibatches before the one that failed have moved the weights
            raise
        except BlockLostError as fault:
            async with self._busy:
                with self._recovering():
                    await self._recover(fault)
            raise
        self._journal.trained(kept)
        return found

    async def save(self, directory: str, *arguments: Any) -> None:
        await self.lasting(lambda: self._trainer.save(directory, *arguments))

    async def save_state(self, directory: str, tag: str) -> None:
        await self.lasting(lambda: self._trainer.save_state(directory, tag))

    async def load_state(self, directory: str, tag: str) -> None:
        await self.lasting(lambda: self._trainer.load_state(directory, tag))
        self._journal.loaded(SavedTrainer(directory, tag))

    def checkpointed(self, directory: str, tag: str, step: int) -> None:
        """The state after ``step`` lies whole in ``directory``: what is older need not be kept."""
        self._journal.saved(SavedTrainer(directory, tag), step)

    # ------------------------------------------------------------------------------------------------------- recovery
    async def lasting(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work``, and again with a new group wherever a rank is lost in it."""
        while True:
            before = self.incarnation
            try:
                return await work()
            except (ActorDiedError, ActorTimeoutError) as fault:
                if not fault.who.startswith(TRAINER_RANK):
                    raise
                async with self._busy:
                    if self.incarnation == before:  # else somebody who noticed as well has done it
                        with self._recovering():
                            await self._recover(fault)

    async def _recover(self, fault: Lost) -> None:
        """Replace every rank, load the last state, take the steps since. Raises NoWayBackError."""
        while True:
            origin, steps = self._journal.way_back()
            await restart_allowed(self._budget, "the trainer", str(fault))
            begun = time.perf_counter()
            try:
                await self._restart(str(fault))
                if origin is not None:
                    await self._trainer.load_state(origin.directory, origin.tag)
                for kept in steps:
                    await self._take_again(kept)
            except (ActorDiedError, ActorTimeoutError) as again:
                fault = again
                continue
            except BlockLostError as gone:
                raise NoWayBackError(
                    f"the trainer cannot be brought back inside the run: rollouts of the steps since its last state "
                    f"are lost ({gone}). The same command resumes at the last checkpoint"
                ) from gone
            self.incarnation += 1
            say(
                f"the trainer is back after {time.perf_counter() - begun:.0f} s, from "
                f"{origin.directory if origin else 'the models that it began with'} and {len(steps)} kept steps"
            )
            return

    async def _take_again(self, kept: K) -> None:
        try:
            await self._take(kept)
        except NumericsError:
            return  # as it did the first time, with the same weights left behind


class LastingTrainer(Lasting[KeptStep, PpoTrainerGroup]):
    """The PPO trainer. Its rollouts are kept as references."""

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        found: Mapping[str, float] = await self._taken(KeptStep(step, tuple(shards), kl_coef, dict(baselines)))
        return found

    async def _take(self, kept: KeptStep) -> Mapping[str, float]:
        return await self._trainer.update(
            step=kept.step, shards=kept.shards, kl_coef=kept.kl_coef, baselines=kept.baselines
        )

    async def keep_failure(self, directory: str) -> str:
        return await self._trainer.keep_failure(directory)

    async def examine(
        self,
        directory: str,
        *,
        step: int,
        shards: Sequence[ScoredShard],
        kl_coef: float,
        baselines: Mapping[str, float],
    ) -> tuple[Findings, ...]:
        return await self._trainer.examine(directory, step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)


class LastingFit(Lasting[KeptBatch, TrainerGroup]):
    """The trainer of SFT, a reward model or DPO: its steps are batches that are counted from the state loaded last."""

    _steps = 0

    async def update(self, works: Sequence[Any]) -> MetricSums:
        """One optimizer step; one work list a rank."""
        found: MetricSums = await self._taken(KeptBatch(self._steps + 1, tuple(works)))
        self._steps += 1
        return found

    async def _take(self, kept: KeptBatch) -> MetricSums:
        return await self._trainer.update(kept.works)

    def resumed(self, step: int) -> None:
        """Batches are counted on from ``step``."""
        self._steps = step

    async def evaluate(self, works: Sequence[Any]) -> MetricSums:
        return await self.lasting(lambda: self._trainer.evaluate(works))

    async def score(self, works: Sequence[Any]) -> dict[int, Any]:
        """Raw scores of every ranking's responses or of every response's steps, by the index of either."""
        return await self.lasting(lambda: self._trainer.score(works))

    async def probe(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of a fixed text under the weights being trained."""
        return await self.lasting(lambda: self._trainer.probe(token_ids))
