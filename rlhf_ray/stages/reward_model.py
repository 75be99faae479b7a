"""The reward model: a scalar head learns which of two responses people prefer.

    loss = - log sigmoid(r_winner - r_loser), averaged over the pairs of a ranking, then over the rankings of the batch

A soft label has the mean of that loss over who wins. With several heads, one an axis, a ranking of an axis compares
that head's scores, and a ranking of the whole their weighted sum.

All K choose 2 pairs of a ranking share one batch element, so each response passes through the network once
(InstructGPT, section 3.5). The score is read at the last token of the response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.algo.losses import bradley_terry_loss
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.data.collate import collate
from rlhf_ray.engines.models import DTYPES, RewardModule, load_scalar
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine, sharded_loading
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import booked
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.rewards.heads import ONE_HEAD, Heads
from rlhf_ray.stages.resumable import Resumable
from rlhf_ray.stages.work import RankingWork, RawScores, TokenizedRanking, flat_pairs


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
    heads: Heads = ONE_HEAD
    head_seed: int | None = None  # of new heads; None: they begin at 0

    def build(self, info: RankInfo) -> RewardModelLearner:
        with sharded_loading(self.training):
            network = load_scalar(
                self.model_path,
                self.model,
                DTYPES[self.training.dtype],
                self.training.lora,
                num_heads=self.heads.num_heads,
                head_seed=self.head_seed,
            )
        engine = TrainingEngine(
            module=RewardModule(network),
            info=info,
            config=self.training,
            optimizer=self.optimizer,
            num_steps=self.num_steps,
        )
        return RewardModelLearner(engine, heads=self.heads, centering=self.centering, margin=self.margin)


class RewardModelLearner(Resumable):
    """One rank of the reward model's trainer."""

    def __init__(self, reward_model: TrainingEngine, *, heads: Heads, centering: float, margin: float) -> None:
        super().__init__(reward_model)
        self.reward_model = reward_model
        self.heads = heads
        self.centering = centering
        self.margin = margin

    @booked(Account.FITTING)
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
            probabilities=torch.tensor(pairs.probabilities, device=scores.device),
            centering=self.centering,
            weights=torch.tensor(pairs.weights, device=scores.device),
        )
        self.reward_model.backward(loss.loss, num_rankings)
        metrics.add("reward_model/loss", float(loss.loss.detach()), float(loss.weight))
        for name, key in (("accuracy", "accuracy"), ("margin", "score_margin")):
            total, weight = loss.metrics[key]
            metrics.add(f"reward_model/{name}", float(total), float(weight))

    def _scores(self, rankings: Sequence[TokenizedRanking]) -> torch.Tensor:
        """The scores [B] that the rankings compare: of their axis, or of the whole."""
        raw = self._raw_scores(rankings)
        mixes = [self.heads.mix(ranking.axis) for ranking in rankings for _ in ranking.sequences]
        # A rank without rankings still runs the same backward: one row of which nothing counts.
        mixes = mixes or [self.heads.weights]
        return (raw * torch.tensor(mixes, dtype=raw.dtype, device=raw.device)).sum(dim=1)

    def _raw_scores(self, rankings: Sequence[TokenizedRanking]) -> torch.Tensor:
        """What every head says of every response: [B, H]."""
        rows = [sequence for ranking in rankings for sequence in ranking.sequences]
        scores: torch.Tensor = self.reward_model.forward(collate(rows).to(self.reward_model.info.torch_device))
        return scores

    def score(self, work: RankingWork) -> tuple[tuple[int, RawScores], ...]:
        """Score every response of this rank's rankings: (index of the ranking, its K raw scores of each head)."""
        results: list[tuple[int, RawScores]] = []
        with self.reward_model.inference():
            for rankings in work.micro_batches:
                scores = iter(self._raw_scores(rankings).tolist())
                results.extend((r.index, tuple(tuple(next(scores)) for _ in r.sequences)) for r in rankings)
        return tuple(results)

    def save(self, directory: str, settings: Mapping[str, Any]) -> None:
        """Write a sequence classifier with a label a head; ``settings`` of its heads go into its configuration."""
        for name, value in settings.items():
            setattr(self.reward_model.module.model.config, name, value)
        self.reward_model.save_pretrained(Path(directory))
