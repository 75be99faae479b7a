"""Supervised fine-tuning: raise the likelihood of the demonstrations' responses, and of nothing else.

loss = - sum over response tokens of log p(token | tokens before it) / number of response tokens in the global batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.algo.losses import language_modelling_loss
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.data.collate import TokenSequence, collate
from rlhf_ray.engines.models import DTYPES, PolicyModule, load_causal
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine, sharded_loading
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import booked
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.stages.resumable import Resumable
from rlhf_ray.stages.work import SequenceWork


@dataclass(frozen=True)
class SftSpec:
    """What a trainer rank needs to build its learner."""

    model_path: str
    model: ModelConfig
    training: TrainingConfig
    optimizer: OptimizerConfig
    num_steps: int

    def build(self, info: RankInfo) -> SftLearner:
        with sharded_loading(self.training):
            network = load_causal(self.model_path, self.model, DTYPES[self.training.dtype], self.training.lora)
        return SftLearner(
            TrainingEngine(
                module=PolicyModule(network),
                info=info,
                config=self.training,
                optimizer=self.optimizer,
                num_steps=self.num_steps,
            )
        )


class SftLearner(Resumable):
    """One rank of the SFT trainer."""

    def __init__(self, policy: TrainingEngine) -> None:
        super().__init__(policy)
        self.policy = policy

    @booked(Account.FITTING)
    def update(self, work: SequenceWork) -> MetricSums:
        """Take one optimizer step on a global batch."""
        metrics = MetricSums()
        metrics.add("sft/learning_rate", self.policy.learning_rate, 1)
        for rows in work.micro_batches:
            self._backward(rows, work.num_tokens, metrics)
        metrics.add("sft/grad_norm", self.policy.step(), 1)
        return metrics

    def _backward(self, rows: Sequence[TokenSequence], num_tokens: int, metrics: MetricSums) -> None:
        batch = collate(rows).to(self.policy.info.torch_device)
        logprobs = self.policy.forward(batch)[0]
        loss = language_modelling_loss(logprobs=logprobs, mask=batch.mask)
        self.policy.backward(loss.loss, num_tokens)
        metrics.add("sft/loss", float(loss.loss.detach()), float(loss.weight))

    def evaluate(self, work: SequenceWork) -> MetricSums:
        """The same loss without a step, as ``sft/heldout_loss``."""
        metrics = MetricSums()
        with self.policy.inference():
            for rows in work.micro_batches:
                batch = collate(rows).to(self.policy.info.torch_device)
                logprobs = self.policy.forward(batch)[0]
                loss = language_modelling_loss(logprobs=logprobs, mask=batch.mask)
                metrics.add("sft/heldout_loss", float(loss.loss), float(loss.weight))
        return metrics

    def save(self, directory: str) -> None:
        """Write the policy as a Hugging Face checkpoint; every rank must call it."""
        self.policy.save_pretrained(Path(directory))
