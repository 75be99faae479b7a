"""What a step's rollouts are worth: old log-probabilities, values and rewards of every sampled token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algo.corrections import rollout_weights
from rlhf_ray.algo.kl import KLEstimator, kl_clamped, kl_estimate
from rlhf_ray.algo.losses import aggregation_weights
from rlhf_ray.algo.masked import masked_sum
from rlhf_ray.algo.rewards import shape_rewards
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.data.collate import TokenBatch, collate, response_sequence, sampled_logprobs, spread
from rlhf_ray.engines.models import adapters_off
from rlhf_ray.engines.training import TrainingEngine
from rlhf_ray.experience_store import SavedExperience
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import AdaptersOff, FloatArray, ReferenceBlock, Rollout
from rlhf_ray.stages.ppo_plan import PpoWork


@dataclass(frozen=True)
class Experience:
    """One micro-batch, scored and ready to train on. All per-token tensors are [B, S] under the alignment rule."""

    orders: tuple[int, ...]  # of its rows; a micro-batch without rollouts has one row without tokens
    batch: TokenBatch
    old_logprobs: Tensor
    ref_logprobs: Tensor
    ref_distribution: Tensor | None  # where the KL is exact: log-probabilities [N, V] at the N sampled tokens
    token_weights: Tensor  # how much each token counts in the policy's loss
    aggregation: Tensor  # the same without the off-policy correction
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class Row:
    """A rollout and its reference: log-probabilities [R], or whole distributions [R, V] where the KL is exact."""

    rollout: Rollout
    reference: FloatArray


def rows_of(blocks: Sequence[Sequence[Rollout] | ReferenceBlock]) -> dict[int, Row]:
    """Rollouts by order. ``blocks`` alternate: rollouts, then their reference log-probabilities."""
    rows: dict[int, Row] = {}
    for block, references in zip(blocks[0::2], blocks[1::2], strict=True):
        rollouts = cast(Sequence[Rollout], block)
        if isinstance(references, AdaptersOff):
            rows |= {r.order: Row(r, r.rollout_logprobs) for r in rollouts}  # the reference is computed by the trainer
        else:
            pairs = zip(rollouts, cast(Sequence[FloatArray], references), strict=True)
            rows |= {r.order: Row(r, reference) for r, reference in pairs}
    return rows


def saved_experiences(minibatches: Sequence[Sequence[Experience]], *, has_values: bool) -> dict[int, SavedExperience]:
    """What is kept of a rank's experience, by order: the sampled tokens' numbers in float32."""

    def sampled(experience: Experience, row: int, values: Tensor) -> FloatArray:
        array: FloatArray = values[row][experience.batch.mask[row]].float().cpu().numpy()
        return array

    return {
        order: SavedExperience(
            old_logprobs=sampled(e, row, e.old_logprobs),
            ref_logprobs=sampled(e, row, e.ref_logprobs),
            advantages=sampled(e, row, e.advantages),
            values=sampled(e, row, e.values) if has_values else None,
        )
        for minibatch in minibatches
        for e in minibatch
        for row, order in enumerate(e.orders)
    }


class ExperienceMaker:
    """Turns rollouts into experience with the policy and the critic as they stand."""

    def __init__(self, policy: TrainingEngine, critic: TrainingEngine | None, config: PpoConfig) -> None:
        self.policy = policy
        self.critic = critic
        self.config = config
        self.device = policy.info.torch_device

    def make(self, orders: Sequence[int], rows: Mapping[int, Row], work: PpoWork, metrics: MetricSums) -> Experience:
        """One micro-batch. Every rank must call it as often as the others, also without rows."""
        own = [rows[order] for order in orders]
        batch = collate([response_sequence(r.rollout.prompt_ids, r.rollout.response_ids) for r in own]).to(self.device)
        distribution = self._distribution(own)
        with self.policy.inference():
            old_logprobs, entropies, exact = self.policy.forward(
                batch, self.config.temperature, with_entropy=True, against=distribution
            )
            ref_logprobs = self._reference(own, batch)
        rewards = self._rewards(orders, batch, old_logprobs, ref_logprobs, exact, work)
        aggregation = aggregation_weights(response_mask=batch.mask, aggregation=self.config.loss.aggregation)
        engine = spread([r.rollout.rollout_logprobs for r in own], batch).to(self.device)
        self._log(own, batch, old_logprobs, ref_logprobs, exact, entropies, rewards, metrics)
        current = spread([(r.rollout.policy_versions == work.step).astype(np.float32) for r in own], batch)
        self._log_agreement(old_logprobs, engine, current.to(self.device) > 0, metrics)
        empty = torch.zeros_like(rewards)
        return Experience(
            orders=tuple(orders),
            batch=batch,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            ref_distribution=distribution,
            token_weights=aggregation * self._corrections(batch, old_logprobs, engine, metrics),
            aggregation=aggregation,
            values=self._values(batch, empty),
            rewards=rewards,
            advantages=empty,
            returns=empty,
        )

    def _values(self, batch: TokenBatch, empty: Tensor) -> Tensor:
        if self.critic is None:
            return empty
        with self.critic.inference():
            values: Tensor = self.critic.forward(batch)
        return values

    def _distribution(self, own: Sequence[Row]) -> Tensor | None:
        if self.config.kl.estimator != "exact":
            return None
        if not own:
            return torch.zeros(0, 0, device=self.device)
        return torch.from_numpy(np.concatenate([r.reference for r in own])).to(self.device)

    def _reference(self, own: Sequence[Row], batch: TokenBatch) -> Tensor:
        if self.policy.config.lora.enabled:  # every rank alike, also one without rows
            with adapters_off(self.policy.module):
                logprobs: Tensor = self.policy.forward(batch, self.config.temperature)[0]
            return logprobs
        return spread([sampled_logprobs(r.reference, r.rollout.response_ids) for r in own], batch).to(self.device)

    def _rewards(
        self,
        orders: Sequence[int],
        batch: TokenBatch,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        exact: Tensor,
        work: PpoWork,
    ) -> Tensor:
        kl, in_reward = self.config.kl, self.config.kl.placement == "reward"
        estimated = in_reward and kl.estimator != "exact"
        rewards = shape_rewards(
            scores=torch.tensor([work.scores[order] for order in orders] or [0.0], device=self.device),
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            response_mask=batch.mask,
            kl_coef=work.kl_coef if estimated else 0.0,
            estimator=cast(KLEstimator, kl.estimator) if estimated else "k1",
            step_rewards=self._step_rewards(orders, batch, work),
        )
        return rewards - work.kl_coef * exact if in_reward and not estimated else rewards

    def _step_rewards(self, orders: Sequence[int], batch: TokenBatch, work: PpoWork) -> Tensor | None:
        if not work.step_rewards:
            return None
        rewards = torch.zeros(batch.mask.shape, device=self.device)
        for row, order in enumerate(orders):
            sampled = batch.mask[row].nonzero()[:, 0]
            for index, reward in work.step_rewards.get(order, ()):
                rewards[row, sampled[index]] += reward
        return rewards

    def _corrections(self, batch: TokenBatch, old_logprobs: Tensor, engine: Tensor, metrics: MetricSums) -> Tensor:
        """Off-policy weights [B, S]; their metrics are logged in any case, so that one sees what none would cost."""
        correction = self.config.correction
        found = rollout_weights(
            old_logprobs=old_logprobs,
            rollout_logprobs=engine,
            response_mask=batch.mask,
            level="token" if correction.level == "none" else correction.level,
            mode=correction.mode,
            low=correction.low,
            high=correction.high,
        )
        for name, (total, count) in found.sums.items():
            metrics.add(f"ppo/rollout_{name}", float(total), float(count))
        for name, value in found.maxima.items():
            metrics.maximum(f"ppo/rollout_{name}", float(value))
        return torch.ones_like(found.weights) if correction.level == "none" else found.weights

    def _log(
        self,
        own: Sequence[Row],
        batch: TokenBatch,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        exact: Tensor,
        entropies: Tensor,
        rewards: Tensor,
        metrics: MetricSums,
    ) -> None:
        kl = torch.where(batch.mask, logprobs - ref_logprobs, torch.zeros_like(logprobs)).double()
        k3 = kl_estimate(logprobs=logprobs, ref_logprobs=ref_logprobs, estimator="k3").double()
        clamped = kl_clamped(logprobs=logprobs, ref_logprobs=ref_logprobs).double()
        sums = [
            batch.mask.sum().double(),
            kl.sum(),
            masked_sum(values=k3, mask=batch.mask),
            masked_sum(values=clamped, mask=batch.mask),
            exact.double().sum(),
            entropies.double().sum(),
            rewards.double().sum(),
        ]
        tokens, kl_sum, k3_sum, clamps, exact_sum, entropy, reward = torch.stack(sums).tolist()
        metrics.add("ppo/kl_per_token", kl_sum, tokens)
        metrics.add("ppo/kl_per_response", kl_sum, len(own))
        metrics.add("ppo/kl_k3", k3_sum, tokens)
        metrics.add("ppo/kl_clamped_fraction", clamps, tokens)
        if self.config.kl.estimator == "exact":
            metrics.add("ppo/kl_exact", exact_sum, tokens)
        metrics.add("ppo/entropy", entropy, tokens)
        metrics.add("ppo/reward_mean", reward, len(own))
        if own:
            metrics.add("ppo/padding_fraction", *batch.padding)

    def _log_agreement(self, logprobs: Tensor, engine: Tensor, current: Tensor, metrics: MetricSums) -> None:
        """Compare engine and trainer where both held the same weights: at tokens of the step's own version [B, S]."""
        difference = torch.where(current, (logprobs - engine).abs(), torch.zeros_like(engine)).double()
        total, largest, tokens = torch.stack([difference.sum(), difference.max(), current.sum().double()]).tolist()
        metrics.add("ppo/logprob_difference", total, tokens)
        if tokens:
            metrics.maximum("ppo/logprob_difference_max", largest)
