"""PPO on one rank: the policy, and the critic where the estimator has one, learn from scored rollouts.

The steps and their order are those of "Learning to summarize from human feedback" (Stiennon et al. 2020, section 3.4)
and InstructGPT (Ouyang et al. 2022, section 3.5); other members of the family replace a line of them:

    1. old log-probabilities and values of the sampled tokens, before any update            (ppo_experience.py)
    2. rewards: -kl_coef * KL(policy || reference) at each token, the score at the last     (ppo_experience.py)
    3. advantages; returns; advantages whitened over the step's global batch                (ppo_advantages.py)
    4. epochs of minibatches: surrogate loss, clipped value loss, optionally the demonstrations' loss (PPO-ptx)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from rlhf_ray.algo.kl import KLLossEstimator, kl_loss_terms
from rlhf_ray.algo.losses import LossSums, aggregation_total, language_modelling_loss, value_loss
from rlhf_ray.algo.masked import masked_sum
from rlhf_ray.algo.policy_losses import cispo_loss, gspo_loss, policy_loss, response_loss
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.data.collate import collate
from rlhf_ray.engines.models import DTYPES, PolicyModule, ValueModule, load_causal, load_scalar
from rlhf_ray.engines.randomness import load_random_state, save_random_state
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine, all_reduce_sum, sharded_loading
from rlhf_ray.errors import ContractError, NumericsError
from rlhf_ray.experience_store import write_experience
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import booked
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import ReferenceBlock, Rollout
from rlhf_ray.rollout_store import step_directory
from rlhf_ray.stages.ppo_advantages import Minibatches, with_advantages
from rlhf_ray.stages.ppo_experience import Experience, ExperienceMaker, Row, rows_of, saved_experiences
from rlhf_ray.stages.ppo_failure import Attempt, Findings, largest, not_finite, read_attempt, write_attempt
from rlhf_ray.stages.ppo_plan import PpoMinibatch, PpoWork
from rlhf_ray.stages.probe import text_logprobs
from rlhf_ray.stages.work import SequenceWork

SURROGATES: Mapping[str, Callable[..., LossSums]] = {
    "clip": policy_loss,
    "response": response_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
}
LOGGED = {
    "clip_fraction": "ppo/clip_fraction",
    "approx_kl_k3": "ppo/approx_kl",
    "dual_clip_fraction": "ppo/dual_clip_fraction",
}


@dataclass(frozen=True)
class PpoSpec:
    """What a trainer rank needs to build policy and critic. Without a critic ``critic_path`` is not read."""

    policy_path: str
    critic_path: str
    policy_model: ModelConfig
    critic_model: ModelConfig
    training: TrainingConfig
    ppo: PpoConfig
    reference_path: str = ""  # what the frozen reference serves, where that is a server of its own
    saved_steps: str = ""  # the directory of the run's saved steps, where their experience is to be kept too

    def build(self, info: RankInfo) -> PpoLearner:
        updates = self.ppo.num_epochs * self.ppo.num_minibatches  # of a step
        policy_steps = max(self.ppo.num_steps - self.ppo.critic_warmup_steps, 1)
        dtype = DTYPES[self.training.dtype]
        with sharded_loading(self.training):
            policy = load_causal(self.policy_path, self.policy_model, dtype, self.training.lora)
        return PpoLearner(
            policy=TrainingEngine(
                module=PolicyModule(policy),
                info=info,
                config=self.training,
                optimizer=self.ppo.policy_optimizer,
                num_steps=policy_steps * updates,
            ),
            critic=self._critic(info, updates) if self.ppo.has_critic else None,
            config=self.ppo,
            starts_as_reference=self.reference_path == self.policy_path or self.training.lora.enabled,
            saved_steps=self.saved_steps,
        )

    def _critic(self, info: RankInfo, updates: int) -> TrainingEngine:
        with sharded_loading(self.training):
            critic = load_scalar(self.critic_path, self.critic_model, DTYPES[self.training.dtype], self.training.lora)
        return TrainingEngine(
            module=ValueModule(critic),
            info=info,
            config=self.training,
            optimizer=self.ppo.critic_optimizer,
            num_steps=self.ppo.num_steps * updates,
        )


class PpoLearner:
    """One rank of the PPO trainer: one engine, or two over the same ranks."""

    def __init__(
        self,
        *,
        policy: TrainingEngine,
        critic: TrainingEngine | None,
        config: PpoConfig,
        starts_as_reference: bool = False,
        saved_steps: str = "",
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.config = config
        self.device = policy.info.torch_device
        self._starts_as_reference = starts_as_reference
        self._saved_steps = saved_steps
        self._attempt = Attempt()  # what is being done; after a failure, what failed
        self._first_kl_limit = config.contracts.first_kl_limit(policy.config.dtype)

    # ------------------------------------------------------------------------------------------------------ the step
    @booked(Account.POLICY)  # but for what is booked otherwise inside
    def update(self, work: PpoWork, *blocks: Sequence[Rollout] | ReferenceBlock) -> MetricSums:
        """Run all epochs of one step. ``blocks`` alternate: rollouts, then their reference log-probabilities.

        Raises NumericsError, on every rank alike, when a loss, a gradient or a log-probability is not finite;
        ContractError when old and new log-probabilities differ before anything was learned. The weights are then those
        of before the update that failed, and no gradient is left; :meth:`keep_failure` tells what it was.
        """
        metrics, self._attempt = MetricSums(), Attempt()
        try:
            experiences = self._checked(self._made(work, rows_of(blocks), metrics), work, metrics)
            self._keep(experiences, work.step)
            first = True
            for number, epoch in enumerate(work.epochs):
                for index in epoch:
                    if work.train_policy:
                        self._try(Attempt("policy", number, index, first, tuple(experiences[index])), work, metrics)
                        first = False
                    if self.critic is not None:
                        self._try(Attempt("critic", number, index, first, tuple(experiences[index])), work, metrics)
        except NumericsError:
            self._discard_gradients()
            raise
        self._attempt = Attempt()  # lets the experience go
        return metrics

    @booked(Account.FORWARDS)
    def _made(self, work: PpoWork, rows: Mapping[int, Row], metrics: MetricSums) -> Minibatches:
        """The step's experience, but for its advantages."""
        maker = ExperienceMaker(self.policy, self.critic, self.config)
        return [
            [maker.make(micro, rows, work, metrics) for micro in minibatch.micro_batches]
            for minibatch in work.minibatches
        ]

    @booked(Account.FORWARDS)
    def _checked(self, experiences: Minibatches, work: PpoWork, metrics: MetricSums) -> Minibatches:
        """The experience with its advantages, where it holds what it must."""
        self._require_finite(experiences)
        self._require_reference(work.step, metrics)
        return with_advantages(experiences, work, self.config, metrics)

    @booked(Account.CHECKPOINT)
    def _keep(self, experiences: Minibatches, step: int) -> None:
        """Write this rank's experience beside the saved step, where the run saves steps."""
        if self._saved_steps:
            made = saved_experiences(experiences, has_values=self.critic is not None)
            write_experience(step_directory(Path(self._saved_steps), step), self.policy.info.rank, made)

    def _try(self, attempt: Attempt, work: PpoWork, metrics: MetricSums) -> None:
        """One model's update on one minibatch."""
        self._attempt = attempt
        minibatch = work.minibatches[attempt.minibatch]
        if attempt.part == "policy":
            self._update_policy(attempt.experiences, minibatch, work, metrics, first=attempt.first)
        elif self.critic is not None:
            self._update_critic(self.critic, attempt.experiences, minibatch, metrics)

    def _discard_gradients(self) -> None:
        self.policy.discard_gradients()
        if self.critic is not None:
            self.critic.discard_gradients()

    def _require_finite(self, minibatches: Minibatches) -> None:
        """Raise on every rank alike, or the others would wait for the one that has stopped."""
        parts = [e.old_logprobs + e.ref_logprobs + e.values + e.rewards for m in minibatches for e in m]
        check = all_reduce_sum(torch.stack([0.0 * part.sum() for part in parts]).sum())
        if not torch.isfinite(check):
            raise NumericsError("a log-probability, value or reward of the sampled tokens is not finite")

    def _require_reference(self, step: int, metrics: MetricSums) -> None:
        """The policy has not learned yet: its KL to a reference with the same weights is 0."""
        if step != 1 or not self._starts_as_reference:
            return
        kl = self._global_mean(*metrics.sums["ppo/kl_k3"])
        metrics.add("ppo/reference_kl_at_start", kl, 1)
        if not kl <= self._first_kl_limit:
            raise ContractError(
                f"before the first update the KL from policy to reference is {kl:.3g} nats a token, and both are the "
                f"same model (ppo.contracts.max_first_kl is {self._first_kl_limit:g}): compare training.dtype with "
                "reference.dtype, and the temperatures that both apply"
            )

    def _require_on_policy(self, total: float, tokens: float, metrics: MetricSums) -> None:
        """Before the first update the ratio is 1: what trains is what gave the old log-probabilities."""
        kl = self._global_mean(total, tokens)
        metrics.add("ppo/first_kl", kl, 1)
        if math.isnan(kl):
            raise NumericsError("the log-probabilities of the step's first update are not finite")
        if not kl <= self._first_kl_limit:
            raise ContractError(
                f"before the step's first update the KL from old to new policy is {kl:.3g} nats a token and should be "
                f"0 (ppo.contracts.max_first_kl is {self._first_kl_limit:g}): a layer behaves otherwise in training "
                "(dropout?), or the kernels of forward passes with and without gradients differ"
            )

    def _global_mean(self, total: float, weight: float) -> float:
        sums = all_reduce_sum(torch.tensor([total, weight], dtype=torch.float64, device=self.device))
        return float(sums[0] / sums[1].clamp(min=1))

    # --------------------------------------------------------------------------------------------- policy and critic
    def _update_policy(
        self,
        experiences: Sequence[Experience],
        minibatch: PpoMinibatch,
        work: PpoWork,
        metrics: MetricSums,
        *,
        first: bool,
    ) -> None:
        metrics.add("ppo/learning_rate", self.policy.learning_rate, 1)
        total = aggregation_total(
            aggregation=self.config.loss.aggregation,
            num_tokens=minibatch.num_tokens,
            num_sequences=minibatch.num_sequences,
            constant=self.config.max_response_tokens,
        )
        moved, tokens = 0.0, 0.0
        for experience in experiences:
            loss, others = self._objective(experience, work, metrics)
            self.policy.backward(loss.loss + others, total)
            _log_loss(metrics, "ppo/policy_loss", loss, LOGGED)
            metrics.maximum("ppo/ratio_max", float(loss.maxima["ratio_max"]))
            moved += float(loss.metrics["approx_kl_k3"][0])
            tokens += float(loss.metrics["approx_kl_k3"][1])
        if first:
            self._require_on_policy(moved, tokens, metrics)
        if minibatch.ptx is not None:
            self._pretraining_mix(minibatch.ptx, metrics)
        metrics.add("ppo/policy_grad_norm", self.policy.step(), 1)

    def _objective(self, experience: Experience, work: PpoWork, metrics: MetricSums) -> tuple[LossSums, Tensor]:
        """The surrogate, and what is added to it: the entropy bonus and the KL where it is part of the loss."""
        config, mask = self.config, experience.batch.mask
        logprobs, entropies, exact = self.policy.forward(
            experience.batch,
            config.temperature,
            with_entropy=config.entropy_coef > 0,
            against=experience.ref_distribution if config.kl.placement == "loss" else None,
        )
        surrogate = {"dual_clip": config.loss.dual_clip} if config.loss.surrogate == "clip" else {}
        loss = SURROGATES[config.loss.surrogate](
            logprobs=logprobs,
            old_logprobs=experience.old_logprobs,
            advantages=experience.advantages,
            response_mask=mask,
            clip_ratio=config.loss.clip_ratio,
            clip_ratio_high=config.loss.clip_ratio_high,
            token_weights=experience.token_weights,
            **surrogate,
        )
        others = -config.entropy_coef * (entropies * experience.aggregation).sum()
        if config.kl.placement == "loss":
            terms = exact
            if config.kl.estimator != "exact":
                terms = kl_loss_terms(
                    logprobs=logprobs,
                    old_logprobs=experience.old_logprobs,
                    ref_logprobs=experience.ref_logprobs,
                    estimator=cast(KLLossEstimator, config.kl.estimator),
                    response_mask=mask,
                )
            others = others + work.kl_coef * masked_sum(values=terms * experience.aggregation, mask=mask)
            metrics.add("ppo/kl_loss", float(masked_sum(values=terms.detach(), mask=mask)), float(mask.sum()))
        return loss, others

    def _pretraining_mix(self, work: SequenceWork, metrics: MetricSums) -> None:
        """InstructGPT, equation 2: ptx_coef times the demonstrations' log-likelihood, in the same optimizer step."""
        for rows in work.micro_batches:
            batch = collate(rows).to(self.device)
            logprobs = self.policy.forward(batch)[0]
            loss = language_modelling_loss(logprobs=logprobs, mask=batch.mask)
            self.policy.backward(self.config.ptx_coef * loss.loss, work.num_tokens)
            metrics.add("ppo/ptx_loss", float(loss.loss.detach()), float(loss.weight))

    @booked(Account.CRITIC)
    def _update_critic(
        self, critic: TrainingEngine, experiences: Sequence[Experience], minibatch: PpoMinibatch, metrics: MetricSums
    ) -> None:
        metrics.add("ppo/critic_learning_rate", critic.learning_rate, 1)
        for experience in experiences:
            values = critic.forward(experience.batch)
            loss = value_loss(
                values=values,
                old_values=experience.values,
                returns=experience.returns,
                response_mask=experience.batch.mask,
                value_clip=self.config.value_clip or None,
            )
            critic.backward(self.config.vf_coef * loss.loss, minibatch.num_tokens)
            _log_loss(metrics, "ppo/value_loss", loss, {"value_clip_fraction": "ppo/value_clip_fraction"})
        metrics.add("ppo/critic_grad_norm", critic.step(), 1)

    def probe(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of tokens 1, 2, ... of a text at temperature 1; every rank must call it."""
        return text_logprobs(self.policy, token_ids)

    # -------------------------------------------------------------------------------------------------------- failures
    def keep_failure(self, directory: str) -> str:
        """Write what this rank was doing when :meth:`update` raised, and say where in the step it was."""
        write_attempt(Path(directory), self.policy.info.rank, self._attempt)
        return str(self._attempt)

    def examine(self, directory: str, work: PpoWork, *blocks: Sequence[Rollout] | ReferenceBlock) -> Findings:
        """Do again what :meth:`keep_failure` wrote, and tell what is not finite. Every rank must call it.

        The trainer must hold the state of that moment; ``work`` and ``blocks`` are those of the step. No weight moves
        unless the update succeeds, which it did not then.
        """
        attempt = read_attempt(Path(directory), self.policy.info.rank, self.device)
        engine = self.critic if attempt.part == "critic" and self.critic is not None else self.policy
        metrics, error = MetricSums(), ""
        experiences = list(attempt.experiences)
        with engine.watched_gradients() as strange:
            try:
                if attempt.part == "experience":
                    made = self._made(work, rows_of(blocks), metrics)
                    experiences = [experience for minibatch in made for experience in minibatch]
                    self._checked(made, work, metrics)
                else:
                    self._try(attempt, work, metrics)
            except NumericsError as raised:
                error = str(raised)
        self._discard_gradients()
        return Findings(
            error=error,
            rows=not_finite(experiences, work),
            largest=largest(experiences, work),
            metrics=metrics,
            gradients=tuple(name for name in engine.parameter_names if name in strange),
        )

    # ---------------------------------------------------------------------------------------------------------- state
    def save(self, directory: str) -> None:
        """Write the policy as a Hugging Face checkpoint; every rank must call it."""
        self.policy.save_pretrained(Path(directory))

    def save_state(self, directory: str, tag: str) -> None:
        """Write the engines' parameters and optimizers, and this rank's random states; every rank must call it."""
        self.policy.save_state(Path(directory) / "policy", tag)
        if self.critic is not None:
            self.critic.save_state(Path(directory) / "critic", tag)
        save_random_state(Path(directory) / "random", self.policy.info.rank)

    def load_state(self, directory: str, tag: str) -> None:
        """Restore what :meth:`save_state` wrote, whatever the number of ranks and the ZeRO stage were."""
        self.policy.load_state(Path(directory) / "policy", tag)
        if self.critic is not None:
            self.critic.load_state(Path(directory) / "critic", tag)
        load_random_state(Path(directory) / "random", self.policy.info.rank)


def _log_loss(metrics: MetricSums, name: str, loss: LossSums, others: Mapping[str, str]) -> None:
    """Add a loss and some of its metrics (key -> logged name); one transfer from the device for all of them."""
    sums = [(loss.loss.detach().double(), loss.weight), *(loss.metrics[key] for key in others)]
    values = torch.stack([part for pair in sums for part in pair]).tolist()
    for logged, total, weight in zip((name, *others.values()), values[0::2], values[1::2], strict=True):
        metrics.add(logged, total, weight)
