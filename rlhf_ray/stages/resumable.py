"""The state of a learner that trains one engine."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.engines.randomness import load_random_state, save_random_state
from rlhf_ray.engines.training import TrainingEngine


class Resumable:
    """``trained`` is the engine that the learner takes steps with."""

    def __init__(self, trained: TrainingEngine) -> None:
        self._trained = trained

    def save_state(self, directory: str, tag: str) -> None:
        """Write the engine's parameters and optimizer, and this rank's random state; every rank must call it."""
        self._trained.save_state(Path(directory) / "engine", tag)
        save_random_state(Path(directory) / "random", self._trained.info.rank)

    def load_state(self, directory: str, tag: str) -> None:
        """Restore what :meth:`save_state` wrote, whatever the number of ranks and the ZeRO stage were."""
        self._trained.load_state(Path(directory) / "engine", tag)
        load_random_state(Path(directory) / "random", self._trained.info.rank)
