"""The Protocols that the driver speaks to. Actors satisfy them with Ray, tests with plain objects.

A ``Ref`` points at a block of rollouts, or of their reference log-probabilities, wherever it lies. The driver passes it
on and never looks inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from rlhf_ray.records import GenerationRequest, RolloutSummary, SamplingSettings, Score

Ref: TypeAlias = Any


@dataclass(frozen=True)
class RolloutShard:
    """Some finished rollouts: what they are, and where they lie."""

    summaries: tuple[RolloutSummary, ...]
    rollouts: Ref


@dataclass(frozen=True)
class ScoredShard:
    """A shard with what the frozen servers say of it."""

    summaries: tuple[RolloutSummary, ...]
    rollouts: Ref
    ref_logprobs: Ref
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class SyncReport:
    """One weight sync, as every engine that was there at its end confirmed it."""

    version: int
    digest: str
    num_bytes: int
    seconds: float
    fleet: Mapping[str, float] = field(default_factory=dict)  # metrics of the generators since the sync before
    parts: Mapping[str, float] = field(default_factory=dict)  # seconds by part; some run at the same time


class Generator(Protocol):
    """The fleet of engines as one thing."""

    def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        """Yield shards as they finish; every request comes back exactly once."""
        ...


class Reference(Protocol):
    async def logprobs(self, shard: RolloutShard) -> Ref:
        """Compute reference log-probabilities and return where they lie."""
        ...


class RewardModel(Protocol):
    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        """One score a rollout, in the order of the shard. What cannot be scored is marked as failed, never left out."""
        ...


class PpoTrainer(Protocol):
    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        """Run the epochs of one step on the rollouts that the shards' summaries name; return the means of its metrics.

        ``baselines`` are scores by prompt that are taken away (ReMax), or none.
        """
        ...

    async def keep_failure(self, directory: str) -> str:
        """After ``update`` raised NumericsError: write what every rank was doing, and say where in the step it was."""
        ...

    async def save_state(self, directory: str, tag: str) -> None: ...

    async def load_state(self, directory: str, tag: str) -> None: ...

    def checkpointed(self, directory: str, tag: str, step: int) -> None:
        """What was saved after ``step`` lies whole in ``directory``: a trainer that is lost begins there again."""
        ...

    async def save(self, directory: str) -> None: ...


class WeightSync(Protocol):
    async def sync(self, version: int, *, waited_s: float | None = None) -> SyncReport:
        """Give every generator the trainer's weights as ``version``.

        ``waited_s`` is how long training has waited for rollouts since the last sync; without it, that is taken to be
        as long as anybody asked for some.

        Raises WeightSyncError when an engine does not confirm exactly what was sent.
        """
        ...
