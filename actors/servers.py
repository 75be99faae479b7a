"""The frozen models and the other sources of scores, as actors. Rollouts in, numbers out.

Each is made from nothing, is told by ``ready`` what it serves, answers once that is loaded, and drops it with ``rest``:
then it can serve another stage. A function or a service that is somebody's own never does: its module may remember.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

from actors.pulse import Watched
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import booked
from rlhf_ray.records import FloatArray, Graded, Rollout
from rlhf_ray.rewards.texts import PromptText


class ModelServer(Watched):
    """What servers of frozen models have in common."""

    def __init__(self) -> None:
        self._engine: Any = None

    @booked(Account.START_UP)
    def rest(self) -> bool:
        """Drop the models; another stage may be served."""
        self._engine = None
        gc.collect()
        return True


class ReferenceActor(ModelServer):
    @booked(Account.START_UP)
    def ready(self, **arguments: Any) -> None:
        """``arguments`` are those of ReferenceEngine."""
        from rlhf_ray.engines.scoring import ReferenceEngine

        self._engine = ReferenceEngine(**arguments)

    @booked(Account.SCORING)
    def logprobs(self, rollouts: Sequence[Rollout]) -> tuple[tuple[FloatArray, ...], int]:
        """Two objects, so that the numbers stay here and their count, which says that they are there, travels."""
        return self._engine.logprobs(rollouts), len(rollouts)

    @booked(Account.SCORING)
    def response_logprobs(self, sequences: Sequence[TokenSequence]) -> tuple[float, ...]:
        found: tuple[float, ...] = self._engine.response_logprobs(sequences)
        return found

    @booked(Account.SCORING)
    def distributions(self, rollouts: Sequence[Rollout]) -> tuple[tuple[FloatArray, ...], int]:
        """Like :meth:`logprobs`."""
        return self._engine.distributions(rollouts), len(rollouts)


class RewardServer(ModelServer):
    @booked(Account.SCORING)
    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        found: tuple[Graded, ...] = self._engine.grade(rollouts)
        return found


class RewardModelActor(RewardServer):
    @booked(Account.START_UP)
    def ready(self, **arguments: Any) -> None:
        """``arguments`` are those of RewardEnsemble."""
        from rlhf_ray.engines.scoring import RewardEnsemble

        self._engine = RewardEnsemble(**arguments)


class ProcessRewardActor(RewardServer):
    @booked(Account.START_UP)
    def ready(self, *, tokenizer: str, model: ModelConfig, step_separator: str, **arguments: Any) -> None:
        """``arguments`` are those of ProcessRewardEngine, but that the separator is text, for this tokenizer."""
        from rlhf_ray.engines.models import load_tokenizer
        from rlhf_ray.engines.scoring import ProcessRewardEngine

        separator = load_tokenizer(tokenizer, model).encode(step_separator, add_special_tokens=False)
        self._engine = ProcessRewardEngine(model=model, separator=separator, **arguments)


class RewardFunctionActor(Watched):
    """A function or a service."""

    def __init__(self) -> None:
        self._reward: Any = None

    @booked(Account.START_UP)
    def ready(
        self,
        *,
        source: RewardSourceConfig,
        prompts: Mapping[str, PromptText],
        tokenizer: str,
        model: ModelConfig,
        seed: int,
    ) -> None:
        """Text is decoded here, where it is scored; ``prompts`` are by prompt_id."""
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

    @booked(Account.SCORING)
    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        found: tuple[Graded, ...] = self._reward.grade(rollouts)
        return found

    @booked(Account.START_UP)
    def close(self) -> None:
        if self._reward is not None:
            self._reward.close()
