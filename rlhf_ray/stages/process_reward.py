"""The process reward model: a scalar head learns, at the end of every step of a response, whether the step is good.

    loss = - y log sigmoid(r) - (1 - y) log sigmoid(-r) at the last token of each step, averaged over steps

Lightman et al. 2023 and Math-Shepherd (Wang et al. 2024, eq. 3). What a step is follows from the data: here everything
up to and with a separator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.algo.losses import LossSums, step_label_loss
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.data.collate import collate
from rlhf_ray.engines.models import DTYPES, StepRewardModule, load_scalar
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine, sharded_loading
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import booked
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.stages.resumable import Resumable
from rlhf_ray.stages.work import LabelledSteps, StepWork


@dataclass(frozen=True)
class ProcessRewardSpec:
    """What a trainer rank needs to build its learner."""

    model_path: str
    model: ModelConfig
    training: TrainingConfig
    optimizer: OptimizerConfig
    num_steps: int

    def build(self, info: RankInfo) -> ProcessRewardLearner:
        with sharded_loading(self.training):
            network = load_scalar(self.model_path, self.model, DTYPES[self.training.dtype], self.training.lora)
        engine = TrainingEngine(
            module=StepRewardModule(network),
            info=info,
            config=self.training,
            optimizer=self.optimizer,
            num_steps=self.num_steps,
        )
        return ProcessRewardLearner(engine)


class ProcessRewardLearner(Resumable):
    """One rank of the trainer."""

    def __init__(self, reward_model: TrainingEngine) -> None:
        super().__init__(reward_model)
        self.reward_model = reward_model

    @booked(Account.FITTING)
    def update(self, work: StepWork) -> MetricSums:
        """Take one optimizer step on a global batch of labelled responses."""
        metrics = MetricSums()
        metrics.add("reward_model/learning_rate", self.reward_model.learning_rate, 1)
        for responses in work.micro_batches:
            loss = self._loss(responses)
            self.reward_model.backward(loss.loss, work.num_steps)
            metrics.add("reward_model/loss", float(loss.loss.detach()), float(loss.weight))
            metrics.add("reward_model/accuracy", *map(float, loss.metrics["accuracy"]))
        metrics.add("reward_model/grad_norm", self.reward_model.step(), 1)
        return metrics

    def _loss(self, responses: tuple[LabelledSteps, ...]) -> LossSums:
        labels = [label for response in responses for label in response.labels]
        rewards = self._rewards(responses)
        return step_label_loss(rewards=rewards, labels=torch.tensor(labels, dtype=torch.bool, device=rewards.device))

    def _rewards(self, responses: tuple[LabelledSteps, ...]) -> torch.Tensor:
        """What the head says at the end of every step: [N], response after response."""
        batch = collate([response.sequence for response in responses]).to(self.reward_model.info.torch_device)
        rewards: torch.Tensor = self.reward_model.forward(batch)[batch.mask]
        return rewards

    def score(self, work: StepWork) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """The raw rewards of this rank's responses: (index of the response, one reward a step)."""
        results: list[tuple[int, tuple[float, ...]]] = []
        with self.reward_model.inference():
            for responses in work.micro_batches:
                rewards = iter(self._rewards(responses).tolist())
                results.extend((r.index, tuple(next(rewards) for _ in r.labels)) for r in responses)
        return tuple(results)

    def save(self, directory: str, settings: Mapping[str, Any]) -> None:
        """Write a one-label sequence classifier; ``settings`` of its head go into its configuration."""
        for name, value in settings.items():
            setattr(self.reward_model.module.model.config, name, value)
        self.reward_model.save_pretrained(Path(directory))
