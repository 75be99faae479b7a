"""The reward model: a scalar head learns which of two responses people prefer.

    loss = - log sigmoid(r_winner - r_loser), averaged over the pairs of a ranking, then over the rankings of the batch

All K choose 2 pairs of a ranking share one batch element, so each response passes through the network once
(InstructGPT, section 3.5). The score is read at the last token of the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_ray.algo.losses import bradley_terry_loss
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.data.collate import collate
from rlhf_ray.engines.models import DTYPES, RewardModule, load_scalar
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine, sharded_loading
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.stages.work import RankingWork, TokenizedRanking, flat_pairs


@dataclass(frozen=True)
class RewardModelSpec:
    """What a trainer rank needs to build its learner."""

    model_path: str
    model: ModelConfig
    training: TrainingConfig
    optimizer: OptimizerConfig
    centering: float
    margin: float
    num_steps: int

    def build(self, info: RankInfo) -> RewardModelLearner:
        with sharded_loading(self.training):
            network = load_scalar(self.model_path, self.model, DTYPES[self.training.dtype], self.training.lora)
        engine = TrainingEngine(
            module=RewardModule(network),
            info=info,
            config=self.training,
            optimizer=self.optimizer,
            num_steps=self.num_steps,
        )
        return RewardModelLearner(engine, centering=self.centering, margin=self.margin)


class RewardModelLearner:
    """One rank of the reward model's trainer."""

    def __init__(self, reward_model: TrainingEngine, *, centering: float, margin: float) -> None:
        self.reward_model = reward_model
        self.centering = centering
        self.margin = margin

    def update(self, work: RankingWork) -> MetricSums:
        """Take one optimizer step on a global batch of rankings."""
        metrics = MetricSums()
        metrics.add("reward_model/learning_rate", self.reward_model.learning_rate, 1)
        for rankings in work.micro_batches:
            self._backward(rankings, work.num_rankings, metrics)
        metrics.add("reward_model/grad_norm", self.reward_model.step(), 1)
        return metrics

    def _backward(self, rankings: Sequence[TokenizedRanking], num_rankings: int, metrics: MetricSums) -> None:
        scores = self._scores(rankings)
        pairs = flat_pairs(rankings)
        loss = bradley_terry_loss(
            chosen_scores=scores[pairs.winners],
            rejected_scores=scores[pairs.losers],
            margins=self.margin * torch.tensor(pairs.gaps, device=scores.device),
            centering=self.centering,
            weights=torch.tensor(pairs.weights, device=scores.device),
        )
        self.reward_model.backward(loss.loss, num_rankings)
        metrics.add("reward_model/loss", float(loss.loss.detach()), float(loss.weight))
        for name, key in (("accuracy", "accuracy"), ("margin", "score_margin")):
            total, weight = loss.metrics[key]
            metrics.add(f"reward_model/{name}", float(total), float(weight))

    def _scores(self, rankings: Sequence[TokenizedRanking]) -> torch.Tensor:
        rows = [sequence for ranking in rankings for sequence in ranking.sequences]
        scores: torch.Tensor = self.reward_model.forward(collate(rows).to(self.reward_model.info.torch_device))
        return scores

    def score(self, work: RankingWork) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """Score every response of this rank's rankings: (index of the ranking, its K raw scores)."""
        results: list[tuple[int, tuple[float, ...]]] = []
        with self.reward_model.inference():
            for rankings in work.micro_batches:
                scores = iter(self._scores(rankings).tolist())
                results.extend((r.index, tuple(next(scores) for _ in r.sequences)) for r in rankings)
        return tuple(results)

    def save(self, directory: str, score_mean: float, score_std: float) -> None:
        """Write a one-label sequence classifier whose config holds the normalisation of its scores."""
        network = self.reward_model.module.model
        network.config.score_mean, network.config.score_std = score_mean, score_std
        self.reward_model.save_pretrained(Path(directory))
