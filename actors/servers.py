"""The frozen models as actors. Plain text in, plain numbers out; batching is the engine's affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.records import FloatArray, Rollout


class ReferenceActor:
    """``arguments`` are those of ReferenceEngine."""

    def __init__(self, **arguments: Any) -> None:
        from rlhf_ray.engines.scoring import ReferenceEngine

        self._engine = ReferenceEngine(**arguments)

    def ready(self) -> None:
        """Answer once the model is loaded."""

    def logprobs(self, rollouts: Sequence[Rollout]) -> tuple[FloatArray, ...]:
        return self._engine.logprobs(rollouts)

    def distributions(self, rollouts: Sequence[Rollout]) -> tuple[FloatArray, ...]:
        return self._engine.distributions(rollouts)


class RewardModelActor:
    """``arguments`` are those of RewardModelEngine."""

    def __init__(self, **arguments: Any) -> None:
        from rlhf_ray.engines.scoring import RewardModelEngine

        self._engine = RewardModelEngine(**arguments)

    def ready(self) -> None:
        """Answer once the model is loaded."""

    def score(self, rollouts: Sequence[Rollout]) -> tuple[float, ...]:
        return self._engine.score(rollouts)
