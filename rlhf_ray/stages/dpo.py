"""Preference optimisation: the policy learns from rankings directly, without a reward model (DPO and its family).

    loss = - log sigmoid(beta (log pi(winner) / ref(winner) - log pi(loser) / ref(loser))), over the pairs of a ranking

All pairs of a ranking share one batch element and weigh 1 together, as in the reward model's training. What the frozen
reference says of every response was computed once, before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlhf_ray.algo.losses import LossSums
from rlhf_ray.algo.preference import (
    chosen_likelihood_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
    with_term,
)
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.data.collate import TokenSequence, collate
from rlhf_ray.engines.models import DTYPES, PolicyModule, load_causal
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine, all_reduce_sum, sharded_loading
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import booked
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.stages.probe import text_logprobs
from rlhf_ray.stages.resumable import Resumable
from rlhf_ray.stages.work import FlatPairs, PreferenceWork, ReferencedRanking, flat_pairs


@dataclass(frozen=True)
class DpoSpec:
    """What a trainer rank needs to build its learner."""

    model_path: str
    model: ModelConfig
    training: TrainingConfig
    dpo: DpoConfig
    num_steps: int

    def build(self, info: RankInfo) -> DpoLearner:
        with sharded_loading(self.training):
            network = load_causal(self.model_path, self.model, DTYPES[self.training.dtype], self.training.lora)
        engine = TrainingEngine(
            module=PolicyModule(network),
            info=info,
            config=self.training,
            optimizer=self.dpo.optimizer,
            num_steps=self.num_steps,
        )
        return DpoLearner(engine, self.dpo)


class DpoLearner(Resumable):
    """One rank of the trainer."""

    def __init__(self, policy: TrainingEngine, config: DpoConfig) -> None:
        super().__init__(policy)
        self.policy = policy
        self.config = config

    @booked(Account.FITTING)
    def update(self, work: PreferenceWork) -> MetricSums:
        """Take one optimizer step on a global batch of rankings."""
        metrics = MetricSums()
        metrics.add("dpo/learning_rate", self.policy.learning_rate, 1)
        baseline = self._baseline(work, metrics, "dpo/")
        for rankings in work.micro_batches:
            loss = self._loss(rankings, baseline)
            self.policy.backward(loss.loss, work.weight)
            _record(loss, metrics, "dpo/")
        metrics.add("dpo/grad_norm", self.policy.step(), 1)
        return metrics

    def evaluate(self, work: PreferenceWork) -> MetricSums:
        """The same measures without a step, as ``dpo_heldout/*``."""
        metrics = MetricSums()
        with self.policy.inference():
            baseline = self._baseline(work, metrics, "dpo_heldout/")
            for rankings in work.micro_batches:
                _record(self._loss(rankings, baseline), metrics, "dpo_heldout/")
        return metrics

    def _loss(self, rankings: Sequence[ReferencedRanking], baseline: float) -> LossSums:
        policy, lengths = self._logprobs([s for each in rankings for s in each.ranking.sequences])
        reference = torch.tensor([v for each in rankings for v in each.reference_logprobs], device=policy.device)
        tokenized = [each.ranking for each in rankings]
        if self.config.loss == "kto":
            ahead = [count for ranking in tokenized for count in ranking.ahead]
            rows = [(row, count > 0) for row, count in enumerate(ahead) if count]
            return kto_loss(
                policy=policy[[row for row, _ in rows]],
                ref=reference[[row for row, _ in rows]],
                desirable=torch.tensor([good for _, good in rows], dtype=torch.bool, device=policy.device),
                kl=baseline,
                beta=self.config.beta,
                desirable_weight=self.config.desirable_weight,
                undesirable_weight=self.config.undesirable_weight,
            )
        return preference_loss(self.config, policy, reference, lengths, flat_pairs(tokenized))

    def _logprobs(self, rows: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
        """Log-probability of each response, summed over its tokens, and their number: [B], [B]."""
        batch = collate(rows).to(self.policy.info.torch_device)
        return self.policy.forward(batch)[0].sum(dim=1), batch.mask.sum(dim=1)

    def _baseline(self, work: PreferenceWork, metrics: MetricSums, prefix: str) -> float:
        """KTO's z_0: the mean log-ratio of responses that belong to other prompts, over all ranks, at least 0."""
        if self.config.loss != "kto":
            return 0.0
        total = torch.zeros((), dtype=torch.float64, device=self.policy.info.torch_device)
        with self.policy.inference():
            for rankings in work.micro_batches:
                policy, _ = self._logprobs([s for each in rankings for s in each.mismatched])
                reference = [v for each in rankings for v in each.mismatched_logprobs]
                total += policy[: len(reference)].double().sum() - sum(reference)
        baseline = max(0.0, float(all_reduce_sum(total)) / work.num_rankings)
        metrics.add(f"{prefix}kto_baseline", baseline, 1)
        return baseline

    def probe(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of tokens 1, 2, ... of a text at temperature 1; every rank must call it."""
        return text_logprobs(self.policy, token_ids)

    def save(self, directory: str) -> None:
        """Write the policy as a Hugging Face checkpoint; every rank must call it."""
        self.policy.save_pretrained(Path(directory))


def preference_loss(
    config: DpoConfig, policy: Tensor, reference: Tensor, lengths: Tensor, pairs: FlatPairs
) -> LossSums:
    """The loss that ``config`` names, over pairs of rows: log-probabilities [B] and response lengths [B]."""
    weights = torch.tensor(pairs.weights, device=policy.device)
    chosen, rejected = policy[pairs.winners], policy[pairs.losers]
    ratios = {
        "policy_chosen": chosen,
        "policy_rejected": rejected,
        "ref_chosen": reference[pairs.winners] if len(reference) else torch.zeros_like(chosen),
        "ref_rejected": reference[pairs.losers] if len(reference) else torch.zeros_like(rejected),
        "weights": weights,
    }
    of_tokens = {"chosen_lengths": lengths[pairs.winners], "rejected_lengths": lengths[pairs.losers]}
    alone = {"policy_chosen": chosen, "policy_rejected": rejected, **of_tokens, "weights": weights}
    likelihood = chosen_likelihood_loss(
        policy_chosen=chosen, chosen_lengths=of_tokens["chosen_lengths"], weights=weights
    )
    beta, probabilities = config.beta, torch.tensor(pairs.probabilities, device=policy.device)
    if config.loss == "orpo":
        return with_term(likelihood, term=odds_ratio_loss(**alone), coef=beta)
    if config.loss == "simpo":
        loss = simpo_loss(**alone, beta=beta, gamma=config.simpo_margin)
    elif config.loss == "ipo":
        loss = ipo_loss(
            **ratios, **(of_tokens if config.length_normalised else {}), tau=beta, probabilities=probabilities
        )
    elif config.loss == "hinge":
        loss = hinge_loss(**ratios, beta=beta)
    elif config.loss == "robust":
        loss = robust_dpo_loss(**ratios, beta=beta, flip_rate=config.label_smoothing)
    else:
        loss = dpo_loss(
            **ratios,
            beta=beta,
            label_smoothing=config.label_smoothing,
            margins=config.margin * torch.tensor(pairs.gaps, device=policy.device),
            probabilities=probabilities,
        )
    return with_term(loss, term=likelihood, coef=config.likelihood_coef)


def _record(loss: LossSums, metrics: MetricSums, prefix: str) -> None:
    metrics.add(f"{prefix}loss", float(loss.loss.detach()), float(loss.weight))
    for name, (total, weight) in loss.metrics.items():
        metrics.add(f"{prefix}{name}", float(total), float(weight))
