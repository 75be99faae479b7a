"""PPO on one rank: policy and critic learn from scored rollouts.

The steps and their order are those of "Learning to summarize from human feedback" (Stiennon et al. 2020, section 3.4)
and InstructGPT (Ouyang et al. 2022, section 3.5):

    1. old log-probabilities and values of the sampled tokens, before any update
    2. rewards: -kl_coef * KL(policy || reference) at each token, the score at the last
    3. generalised advantage estimation; returns; advantages whitened over the step's global batch
    4. epochs of minibatches: clipped policy loss, clipped value loss, optionally the demonstrations' loss (PPO-ptx)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algo.advantages import gae
from rlhf_ray.algo.losses import LossSums, language_modelling_loss, value_loss
from rlhf_ray.algo.masked import mean_and_variance, moments, whiten
from rlhf_ray.algo.policy_losses import policy_loss
from rlhf_ray.algo.rewards import clip_scores, penalise_missing_eos, shape_rewards, whiten_rewards
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.data.collate import TokenBatch, TokenSequence, collate, response_sequence, spread
from rlhf_ray.engines.models import DTYPES, PolicyModule, ValueModule, adapters_off, load_causal, load_scalar
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine, all_reduce_sum, sharded_loading
from rlhf_ray.errors import NumericsError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import AdaptersOff, FloatArray, ReferenceBlock, Rollout
from rlhf_ray.stages.ppo_plan import PpoMinibatch, PpoWork
from rlhf_ray.stages.work import SequenceWork


@dataclass(frozen=True)
class Experience:
    """One micro-batch, scored and ready to train on. All per-token tensors are [B, S] under the alignment rule."""

    batch: TokenBatch
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class PpoSpec:
    """What a trainer rank needs to build policy and critic."""

    policy_path: str
    critic_path: str
    policy_model: ModelConfig
    critic_model: ModelConfig
    training: TrainingConfig
    ppo: PpoConfig

    def build(self, info: RankInfo) -> PpoLearner:
        updates = self.ppo.num_epochs * self.ppo.num_minibatches  # of a step
        policy_steps = max(self.ppo.num_steps - self.ppo.critic_warmup_steps, 1)
        dtype = DTYPES[self.training.dtype]
        with sharded_loading(self.training):
            policy = load_causal(self.policy_path, self.policy_model, dtype, self.training.lora)
            critic = load_scalar(self.critic_path, self.critic_model, dtype, self.training.lora)
        return PpoLearner(
            policy=TrainingEngine(
                module=PolicyModule(policy),
                info=info,
                config=self.training,
                optimizer=self.ppo.policy_optimizer,
                num_steps=policy_steps * updates,
            ),
            critic=TrainingEngine(
                module=ValueModule(critic),
                info=info,
                config=self.training,
                optimizer=self.ppo.critic_optimizer,
                num_steps=self.ppo.num_steps * updates,
            ),
            config=self.ppo,
        )


class PpoLearner:
    """One rank of the PPO trainer: two engines over the same ranks."""

    def __init__(self, *, policy: TrainingEngine, critic: TrainingEngine, config: PpoConfig) -> None:
        self.policy = policy
        self.critic = critic
        self.config = config
        self.device = policy.info.torch_device

    # ------------------------------------------------------------------------------------------------------ the step
    def update(self, work: PpoWork, *blocks: Sequence[Rollout] | ReferenceBlock) -> MetricSums:
        """Run all PPO epochs of one step. ``blocks`` alternate: rollouts, then their reference log-probabilities.

        Raises NumericsError when a loss, a gradient or a log-probability is not finite.
        """
        rows = _rows(blocks)
        metrics = MetricSums()
        experiences = [
            [self._experience(micro, rows, work, metrics) for micro in minibatch.micro_batches]
            for minibatch in work.minibatches
        ]
        self._require_finite(experiences)
        experiences = self._with_advantages(experiences, metrics)
        for epoch in work.epochs:
            for index in epoch:
                if work.train_policy:
                    self._update_policy(experiences[index], work.minibatches[index], metrics)
                self._update_critic(experiences[index], work.minibatches[index], metrics)
        return metrics

    # --------------------------------------------------------------------------- 1 and 2: log-probabilities to rewards
    def _experience(
        self, orders: Sequence[int], rows: Mapping[int, _Row], work: PpoWork, metrics: MetricSums
    ) -> Experience:
        own = [rows[order] for order in orders]
        batch = collate([response_sequence(r.rollout.prompt_ids, r.rollout.response_ids) for r in own]).to(self.device)
        with self.policy.inference(), self.critic.inference():
            old_logprobs, entropies = self.policy.forward(batch, self.config.temperature, with_entropy=True)
            ref_logprobs = self._reference(own, batch)
            values = self.critic.forward(batch)
        scores = torch.tensor([work.scores[order] for order in orders], device=self.device)
        rewards = shape_rewards(
            scores=self._shaped_scores(scores, own) if own else torch.zeros(1, device=self.device),
            logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            response_mask=batch.mask,
            kl_coef=work.kl_coef,
            estimator=self.config.kl.estimator,  # type: ignore[arg-type]
        )
        self._log_rollouts(own, batch, old_logprobs, ref_logprobs, entropies, rewards, metrics)
        empty = torch.zeros_like(values)
        return Experience(batch, old_logprobs, ref_logprobs, values, rewards, empty, empty)

    def _reference(self, own: Sequence[_Row], batch: TokenBatch) -> Tensor:
        if self.policy.config.lora.enabled:  # every rank alike, also one without rows
            with adapters_off(self.policy.module):
                logprobs: Tensor = self.policy.forward(batch, self.config.temperature)[0]
            return logprobs
        return spread([r.ref_logprobs for r in own], batch).to(self.device)

    def _shaped_scores(self, scores: Tensor, own: Sequence[_Row]) -> Tensor:
        finished = torch.tensor([r.rollout.finish_reason == "stop" for r in own], device=self.device)
        reward = self.config.reward
        if reward.score_clip:
            scores = clip_scores(scores=scores, limit=reward.score_clip)
        return penalise_missing_eos(scores=scores, finished=finished, penalty=reward.missing_eos_penalty)

    def _require_finite(self, minibatches: Sequence[Sequence[Experience]]) -> None:
        """Raise on every rank alike, or the others would wait for the one that has stopped."""
        parts = [e.old_logprobs + e.ref_logprobs + e.values for minibatch in minibatches for e in minibatch]
        check = all_reduce_sum(torch.stack([0.0 * part.sum() for part in parts]).sum())
        if not torch.isfinite(check):
            raise NumericsError("a log-probability or value of the sampled tokens is not finite")

    # ------------------------------------------------------------------------------------------------- 3: advantages
    def _with_advantages(self, minibatches: list[list[Experience]], metrics: MetricSums) -> list[list[Experience]]:
        if self.config.reward.whiten_rewards:
            mean, variance = self._statistics(minibatches, lambda e: e.rewards)
            minibatches = _mapped(
                minibatches,
                lambda e: replace(
                    e,
                    rewards=whiten_rewards(rewards=e.rewards, response_mask=e.batch.mask, mean=mean, variance=variance),
                ),
            )
        minibatches = _mapped(minibatches, self._with_gae)
        mean, variance = self._statistics(minibatches, lambda e: e.advantages)
        metrics.add("ppo/advantage_std", float(variance.sqrt()), 1)
        _, of_returns = self._statistics(minibatches, lambda e: e.returns)
        _, of_errors = self._statistics(minibatches, lambda e: e.returns - e.values)
        metrics.add("ppo/explained_variance", 1.0 - float(of_errors) / max(float(of_returns), 1e-8), 1)
        if not self.config.whitens_advantages:
            return minibatches
        return _mapped(
            minibatches,
            lambda e: replace(
                e, advantages=whiten(values=e.advantages, mask=e.batch.mask, mean=mean, variance=variance)
            ),
        )

    def _with_gae(self, experience: Experience) -> Experience:
        advantages, returns = gae(
            rewards=experience.rewards,
            values=experience.values,
            response_mask=experience.batch.mask,
            gamma=self.config.gamma,
            lam=self.config.lam,
        )
        return replace(experience, advantages=advantages, returns=returns)

    def _statistics(
        self, minibatches: Sequence[Sequence[Experience]], what: Callable[[Experience], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance over the sampled tokens of the step, on all ranks."""
        own = [moments(values=what(e), mask=e.batch.mask) for minibatch in minibatches for e in minibatch]
        return mean_and_variance(all_reduce_sum(torch.stack(own).sum(dim=0)))

    # --------------------------------------------------------------------------------------------- 4: policy and critic
    def _update_policy(self, experiences: Sequence[Experience], minibatch: PpoMinibatch, metrics: MetricSums) -> None:
        metrics.add("ppo/learning_rate", self.policy.learning_rate, 1)
        for experience in experiences:
            logprobs, entropies = self.policy.forward(
                experience.batch, self.config.temperature, with_entropy=self.config.entropy_coef > 0
            )
            loss = policy_loss(
                logprobs=logprobs,
                old_logprobs=experience.old_logprobs,
                advantages=experience.advantages,
                response_mask=experience.batch.mask,
                clip_ratio=self.config.loss.clip_ratio,
            )
            objective = loss.loss - self.config.entropy_coef * entropies.sum()
            self.policy.backward(objective, minibatch.num_tokens)
            _log_loss(
                metrics,
                "ppo/policy_loss",
                loss,
                {"clip_fraction": "ppo/clip_fraction", "approx_kl_k3": "ppo/approx_kl"},
            )
            metrics.maximum("ppo/ratio_max", float(loss.maxima["ratio_max"]))
        if minibatch.ptx is not None:
            self._pretraining_mix(minibatch.ptx, metrics)
        metrics.add("ppo/policy_grad_norm", self.policy.step(), 1)

    def _pretraining_mix(self, work: SequenceWork, metrics: MetricSums) -> None:
        """InstructGPT, equation 2: ptx_coef times the demonstrations' log-likelihood, in the same optimizer step."""
        for rows in work.micro_batches:
            batch = collate(rows).to(self.device)
            logprobs, _ = self.policy.forward(batch)
            loss = language_modelling_loss(logprobs=logprobs, mask=batch.mask)
            self.policy.backward(self.config.ptx_coef * loss.loss, work.num_tokens)
            metrics.add("ppo/ptx_loss", float(loss.loss.detach()), float(loss.weight))

    def _update_critic(self, experiences: Sequence[Experience], minibatch: PpoMinibatch, metrics: MetricSums) -> None:
        metrics.add("ppo/critic_learning_rate", self.critic.learning_rate, 1)
        for experience in experiences:
            values = self.critic.forward(experience.batch)
            loss = value_loss(
                values=values,
                old_values=experience.values,
                returns=experience.returns,
                response_mask=experience.batch.mask,
                value_clip=self.config.value_clip or None,
            )
            self.critic.backward(self.config.vf_coef * loss.loss, minibatch.num_tokens)
            _log_loss(metrics, "ppo/value_loss", loss, {"value_clip_fraction": "ppo/value_clip_fraction"})
        metrics.add("ppo/critic_grad_norm", self.critic.step(), 1)

    # -------------------------------------------------------------------------------------------------------- metrics
    def _log_rollouts(
        self,
        own: Sequence[_Row],
        batch: TokenBatch,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        entropies: Tensor,
        rewards: Tensor,
        metrics: MetricSums,
    ) -> None:
        engine = spread([r.rollout.rollout_logprobs for r in own], batch).to(self.device)
        difference = (logprobs - engine).abs().double()
        kl = torch.where(batch.mask, logprobs - ref_logprobs, torch.zeros_like(logprobs)).double()
        sums = [batch.mask.sum().double(), kl.sum(), entropies.double().sum(), rewards.double().sum(), difference.sum()]
        tokens, kl_sum, entropy, reward, off = torch.stack(sums).tolist()
        metrics.add("ppo/kl_per_token", kl_sum, tokens)
        metrics.add("ppo/kl_per_response", kl_sum, len(own))
        metrics.add("ppo/entropy", entropy, tokens)
        metrics.add("ppo/reward_mean", reward, len(own))
        metrics.add("ppo/logprob_difference", off, tokens)
        metrics.maximum("ppo/logprob_difference_max", float(difference.max()))
        if own:
            metrics.add("ppo/padding_fraction", *batch.padding)

    def probe(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of tokens 1, 2, ... of a text at temperature 1; every rank must call it."""
        mask = np.ones(len(token_ids), dtype=np.bool_)
        mask[0] = False
        batch = collate([TokenSequence(np.array(token_ids, dtype=np.int32), mask)]).to(self.device)
        with self.policy.inference():
            logprobs, _ = self.policy.forward(batch)
        return [float(value) for value in logprobs[0, 1:]]

    # ---------------------------------------------------------------------------------------------------------- state
    def save(self, directory: str) -> None:
        """Write the policy as a Hugging Face checkpoint; every rank must call it."""
        self.policy.save_pretrained(Path(directory))

    def save_state(self, directory: str, tag: str) -> None:
        """Write both engines' parameters and optimizers; every rank must call it."""
        self.policy.save_state(Path(directory) / "policy", tag)
        self.critic.save_state(Path(directory) / "critic", tag)

    def load_state(self, directory: str, tag: str) -> None:
        """Restore what :meth:`save_state` wrote."""
        self.policy.load_state(Path(directory) / "policy", tag)
        self.critic.load_state(Path(directory) / "critic", tag)


@dataclass(frozen=True)
class _Row:
    rollout: Rollout
    ref_logprobs: FloatArray


def _rows(blocks: Sequence[Sequence[Rollout] | ReferenceBlock]) -> dict[int, _Row]:
    """Rollouts by order, with their reference log-probabilities."""
    rows: dict[int, _Row] = {}
    for block, references in zip(blocks[0::2], blocks[1::2], strict=True):
        rollouts = cast(Sequence[Rollout], block)
        if isinstance(references, AdaptersOff):
            rows |= {r.order: _Row(r, r.rollout_logprobs) for r in rollouts}  # the reference is computed here
        else:
            pairs = zip(rollouts, cast(Sequence[FloatArray], references), strict=True)
            rows |= {r.order: _Row(r, ref_logprobs) for r, ref_logprobs in pairs}
    return rows


def _mapped(
    minibatches: Sequence[Sequence[Experience]], change: Callable[[Experience], Experience]
) -> list[list[Experience]]:
    return [[change(e) for e in minibatch] for minibatch in minibatches]


def _log_loss(metrics: MetricSums, name: str, loss: LossSums, others: Mapping[str, str]) -> None:
    """Add a loss and some of its metrics (key -> logged name); one transfer from the device for all of them."""
    sums = [(loss.loss.detach().double(), loss.weight), *(loss.metrics[key] for key in others)]
    values = torch.stack([part for pair in sums for part in pair]).tolist()
    for logged, total, weight in zip((name, *others.values()), values[0::2], values[1::2], strict=True):
        metrics.add(logged, total, weight)
