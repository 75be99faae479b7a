"""Writes down every step of a PPO run: the roles as they are, with an ear at each.

What is kept is what was sampled, with the scores as they were given: rollouts that the driver drops, scores that it
normalises and the greedy responses of ReMax included. From it ``rlhf-ray replay`` runs driver and trainer again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import RunConfig
from rlhf_ray.directories import begin, complete
from rlhf_ray.driver import Roles
from rlhf_ray.errors import BlockLostError, NumericsError, RlhfError
from rlhf_ray.pipeline.context import Scope
from rlhf_ray.records import GenerationRequest, SamplingSettings, Score
from rlhf_ray.roles import Generator, PpoTrainer, Ref, Reference, RewardModel, RolloutShard, ScoredShard
from rlhf_ray.rollout_store import ROLLOUTS, SavedShard, StepRecord, StepWriter, step_directory
from rlhf_ray.wrapped import WrappedTrainer

# Below the stage's directory; rollouts are in a quarantined step's too.
QUARANTINE = "quarantine"
QUARANTINE_FILE = "quarantine.json"
STATE = "trainer"


@dataclass(frozen=True)
class Said:
    """A shard of the step that is under way, and what the frozen servers have said of it so far: references only."""

    shard: RolloutShard
    ref_logprobs: Ref = None
    scores: tuple[Score, ...] = ()


class StepNotes:
    """What was said of the rollouts that have not been trained on, of whatever step they are."""

    def __init__(self) -> None:
        self._said: dict[int, Said] = {}

    def sampled(self, shard: RolloutShard) -> None:
        self._said[id(shard)] = Said(shard)

    def referred(self, shard: RolloutShard, ref_logprobs: Ref) -> None:
        if said := self._said.get(id(shard)):
            self._said[id(shard)] = replace(said, ref_logprobs=ref_logprobs)

    def scored(self, shard: RolloutShard, scores: tuple[Score, ...]) -> None:
        if said := self._said.get(id(shard)):
            self._said[id(shard)] = replace(said, scores=scores)

    @contextmanager
    def unless_lost(self, shard: RolloutShard) -> Iterator[None]:
        """A shard that vanishes while it is worked on is sampled again: nothing of it is kept."""
        try:
            yield
        except BlockLostError:
            self._said.pop(id(shard), None)
            raise

    def forget(self, step: int) -> None:
        """Let the blocks of a step go."""
        self._said = {key: said for key, said in self._said.items() if step_of(said.shard) != step}

    async def write(self, directory: Path, record: StepRecord, scope: Scope) -> int:
        """Write the step to ``directory``, one shard after the other; the bytes that it takes."""
        writer = StepWriter(directory)
        own = [said for said in self._said.values() if step_of(said.shard) == record.step]
        for said in sorted(own, key=lambda s: s.shard.summaries[0].order):
            reference = None if said.ref_logprobs is None else await scope.fetch(said.ref_logprobs)
            writer.add(SavedShard(tuple(await scope.fetch(said.shard.rollouts)), reference, said.scores))
        return writer.finish(record)


def step_of(shard: RolloutShard) -> int:
    """The step that a shard was sampled for."""
    return int(shard.summaries[0].rollout_id.split("/")[0])


class RecordedGenerator:
    def __init__(self, generator: Generator, notes: StepNotes) -> None:
        self._generator, self._notes = generator, notes

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        async for shard in self._generator.generate(requests, settings):
            self._notes.sampled(shard)
            yield shard


class RecordedReference:
    def __init__(self, reference: Reference, notes: StepNotes) -> None:
        self._reference, self._notes = reference, notes

    async def logprobs(self, shard: RolloutShard) -> Ref:
        with self._notes.unless_lost(shard):
            ref_logprobs = await self._reference.logprobs(shard)
        self._notes.referred(shard, ref_logprobs)
        return ref_logprobs


class RecordedRewardModel:
    def __init__(self, reward_model: RewardModel, notes: StepNotes) -> None:
        self._reward_model, self._notes = reward_model, notes

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        with self._notes.unless_lost(shard):
            scores = await self._reward_model.score(shard)
        self._notes.scored(shard, scores)
        return scores


class RecordedTrainer(WrappedTrainer):
    """Writes every step below ``directory`` before it is trained on, where that is asked for, and those that fail."""

    def __init__(self, trainer: PpoTrainer, notes: StepNotes, scope: Scope, directory: Path, config: RunConfig) -> None:
        super().__init__(trainer)
        self._notes, self._scope = notes, scope
        self._directory, self._config = directory, config

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        """Save the step, then train on it; ``ppo/saved_bytes`` is what it takes on the disk.

        A NumericsError names the directory that the step was quarantined in, and the command that does it again.
        """
        record, saved = StepRecord(step, kl_coef, baselines, trained_scores(shards)), {}
        try:
            if self._config.ppo.save_rollouts:
                place = step_directory(self._directory / ROLLOUTS, step)
                saved["ppo/saved_bytes"] = float(await self._notes.write(place, record, self._scope))
            metrics = await super().update(step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)
        except NumericsError as error:
            raise type(error)(f"{error}. {await self._quarantine(record, error)}") from error
        finally:
            self._notes.forget(step)
        return {**metrics, **saved}

    async def _quarantine(self, record: StepRecord, error: NumericsError) -> str:
        """Keep all that the failure follows from; what a reader should know of it."""
        place = step_directory(self._directory / QUARANTINE, record.step)
        aside = begin(place)
        try:
            await self._notes.write(aside / ROLLOUTS, record, self._scope)
            await self._trainer.save_state(str(aside), STATE)
            where = await self._trainer.keep_failure(str(aside))
            (aside / "config.yaml").write_text(to_yaml(self._config))
            content = {"step": record.step, "error": str(error), "where": where}
            complete(aside, place, manifest=QUARANTINE_FILE, content=content)
        except (OSError, RlhfError) as failure:
            return f"The step could not be quarantined in {place}: {failure}"
        return f"The step is quarantined, with the trainer's state; to do it again: rlhf-ray replay {place}"


def trained_scores(shards: Sequence[ScoredShard]) -> dict[int, Score]:
    """The scores that are trained on, by order."""
    return {
        summary.order: score for shard in shards for summary, score in zip(shard.summaries, shard.scores, strict=True)
    }


def recorded(roles: Roles, scope: Scope, directory: Path, config: RunConfig) -> Roles:
    """The same roles; what they do is written down below ``directory``: every step, or those that fail."""
    notes = StepNotes()
    return Roles(
        generator=RecordedGenerator(roles.generator, notes),
        reference=RecordedReference(roles.reference, notes),
        reward_model=RecordedRewardModel(roles.reward_model, notes),
        trainer=RecordedTrainer(roles.trainer, notes, scope, directory, config),
        weights=roles.weights,
    )
