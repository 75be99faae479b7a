"""The frozen models and the other sources of scores, as actors. Rollouts in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.pulse import Watched
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.records import FloatArray, Graded, Rollout
from rlhf_ray.rewards.texts import PromptText


class ReferenceActor(Watched):
    """``arguments`` are those of ReferenceEngine."""

    def __init__(self, **arguments: Any) -> None:
        from rlhf_ray.engines.scoring import ReferenceEngine

        self._engine = ReferenceEngine(**arguments)

    def ready(self) -> None:
        """Answer once the model is loaded."""

    def logprobs(self, rollouts: Sequence[Rollout]) -> tuple[tuple[FloatArray, ...], int]:
        """Two objects, so that the numbers stay here and their count, which says that they are there, travels."""
        return self._engine.logprobs(rollouts), len(rollouts)

    def response_logprobs(self, sequences: Sequence[TokenSequence]) -> tuple[float, ...]:
        return self._engine.response_logprobs(sequences)

    def distributions(self, rollouts: Sequence[Rollout]) -> tuple[tuple[FloatArray, ...], int]:
        """Like :meth:`logprobs`."""
        return self._engine.distributions(rollouts), len(rollouts)


class RewardModelActor(Watched):
    """``arguments`` are those of RewardEnsemble."""

    def __init__(self, **arguments: Any) -> None:
        from rlhf_ray.engines.scoring import RewardEnsemble

        self._engine = RewardEnsemble(**arguments)

    def ready(self) -> None:
        """Answer once the models are loaded."""

    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        return self._engine.grade(rollouts)


class ProcessRewardActor(Watched):
    """``arguments`` are those of ProcessRewardEngine, but that the separator is text, for this tokenizer."""

    def __init__(self, *, tokenizer: str, model: ModelConfig, step_separator: str, **arguments: Any) -> None:
        from rlhf_ray.engines.models import load_tokenizer
        from rlhf_ray.engines.scoring import ProcessRewardEngine

        separator = load_tokenizer(tokenizer, model).encode(step_separator, add_special_tokens=False)
        self._engine = ProcessRewardEngine(model=model, separator=separator, **arguments)

    def ready(self) -> None:
        """Answer once the model is loaded."""

    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        return self._engine.grade(rollouts)


class RewardFunctionActor(Watched):
    """A function or a service. Text is decoded here, where it is scored; ``prompts`` are by prompt_id."""

    def __init__(
        self,
        *,
        source: RewardSourceConfig,
        prompts: Mapping[str, PromptText],
        tokenizer: str,
        model: ModelConfig,
        seed: int,
    ) -> None:
        from rlhf_ray.engines.models import load_tokenizer
        from rlhf_ray.rewards.sources import open_source
        from rlhf_ray.rewards.texts import RolloutReward

        loaded = load_tokenizer(tokenizer, model)
        self._reward = RolloutReward(
            open_source(source, seed=seed),
            prompts=prompts,
            decode=lambda token_ids: str(loaded.decode(token_ids, skip_special_tokens=True)),
            batch_size=source.batch_size,
        )

    def ready(self) -> None:
        """Answer once the function is loaded."""

    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        return self._reward.grade(rollouts)

    def close(self) -> None:
        self._reward.close()
