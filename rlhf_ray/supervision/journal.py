"""What a trainer has done since its last state on disk, so that a new one can do it again.

Rollouts are kept as references: what they point at lies in the object store and is let go with the next checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rlhf_ray.errors import RlhfError
from rlhf_ray.roles import ScoredShard


class NoWayBackError(RlhfError):
    """A trainer is lost, and too many steps have passed since its last state."""


@dataclass(frozen=True)
class SavedTrainer:
    """A state of the trainer on disk."""

    directory: str
    tag: str


class Kept(Protocol):
    """The arguments of one update, and its number."""

    @property
    def step(self) -> int: ...


K = TypeVar("K", bound=Kept)


@dataclass(frozen=True)
class KeptStep:
    """The arguments of one PPO update."""

    step: int
    shards: tuple[ScoredShard, ...]
    kl_coef: float
    baselines: Mapping[str, float]


@dataclass(frozen=True)
class KeptBatch:
    """The arguments of one optimizer step of SFT, a reward model or DPO: a work list a rank."""

    step: int
    works: tuple[Any, ...]


class Journal(Generic[K]):
    """The last whole state, or None for the models that the trainer was built from; and the steps since."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._origin: SavedTrainer | None = None
        self._steps: list[K] = []
        self._dropped = 0

    def loaded(self, origin: SavedTrainer) -> None:
        """The trainer was given this state: what it did before is of no use any more."""
        self._origin, self._steps, self._dropped = origin, [], 0

    def saved(self, origin: SavedTrainer, step: int) -> None:
        """The state after ``step`` lies whole on disk."""
        self._origin, self._dropped = origin, 0
        self._steps = [kept for kept in self._steps if kept.step > step]

    def trained(self, kept: K) -> None:
        """One more step is done. Where more than ``max_steps`` would be kept, all are let go."""
        if self._dropped or len(self._steps) == self._max_steps:
            self._dropped += len(self._steps) + 1
            self._steps = []
        else:
            self._steps.append(kept)

    def way_back(self) -> tuple[SavedTrainer | None, Sequence[K]]:
        """Where a new trainer begins, and the steps that it takes again. Raises NoWayBackError."""
        if self._dropped:
            raise NoWayBackError(
                f"the trainer cannot be brought back inside the run: {self._dropped} steps have passed since its last "
                f"state, and what {self._max_steps} were given is kept (faults.max_kept_steps); set "
                "ppo.checkpoint_every, or checkpoints.fit_every, to no more than that. The same command resumes at the "
                "last checkpoint"
            )
        return self._origin, tuple(self._steps)
