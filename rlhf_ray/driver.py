"""The PPO loop. It holds references and scalars, never token tensors; it knows neither Ray, nor vLLM, nor DeepSpeed.

prompts ──> generator ──> rollouts ──┬──> reference ─────> ref_logprobs ──┐
                ^                    └──> reward model ──> scores ────────┤
                │                                                         v
                └────────────── weights, version, checksum <────────── trainer

How a batch is collected stands in collecting.py, how far ahead of its step in lookahead.py.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlhf_ray.algo.controllers import AdaptiveKL, FixedKL
from rlhf_ray.algo.running import RunningMoments
from rlhf_ray.collecting import MAX_LOST, Collected, Collector, PhaseClock, PromptSource
from rlhf_ray.config.algorithm import KlConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.errors import BlockLostError, ContractError, NumericsError, RlhfError
from rlhf_ray.lookahead import Kept, Lookahead, Schedule
from rlhf_ray.records import SamplingSettings
from rlhf_ray.roles import Generator, PpoTrainer, Reference, RewardModel, WeightSync
from rlhf_ray.step_batch import StepBatch, chosen, summarise, timing

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Roles:
    """Who takes part in a PPO run."""

    generator: Generator
    reference: Reference
    reward_model: RewardModel
    trainer: PpoTrainer
    weights: WeightSync


class Driver:
    """Coordinates rollouts, scoring, updates and weight sync, one step after the other, as ``ppo.schedule`` wants."""

    def __init__(
        self,
        *,
        roles: Roles,
        prompts: PromptSource,
        config: PpoConfig,
        settings: SamplingSettings,
        seed: int,
        max_failed_fraction: float = 0.25,
        warn: Callable[[str], None] = warnings.warn,
        on_phase: Callable[[int, str], None] = lambda step, phase: None,
        schedule: Schedule | None = None,
    ) -> None:
        self.trainer = roles.trainer
        self.weights = roles.weights
        self.prompts = prompts
        self.config = config
        self.seed = seed
        self.steps_done = 0
        self.policy_version = 0
        self.max_failed_fraction = max_failed_fraction
        self.warn = warn
        self.on_phase = on_phase  # told (step, phase) when a phase begins
        self.count_work: Callable[[StepBatch], Metrics] = lambda batch: {}  # what a step computes, for its metrics
        self.kl_controller = make_kl_controller(config.kl)
        self.score_moments = RunningMoments()
        self.skipped_steps = 0
        self.collector = Collector(
            generator=roles.generator,
            reference=roles.reference,
            reward_model=roles.reward_model,
            prompts=prompts,
            config=config,
            settings=settings,
            seed=seed,
            warn=warn,
        )
        self.lookahead = Lookahead(self._collect, prompts, schedule or schedule_of(config))
        self._awaited = 0  # the step whose batch is being waited for
        self._waited_s = 0.0  # for rollouts, since the last sync

    async def run(self, after_step: Callable[[int, Metrics], Awaitable[None]]) -> None:
        """Train until ``config.num_steps`` steps are done, calling ``after_step(step, metrics)`` after each."""
        try:
            await self.sync_weights()
            while self.steps_done < self.config.num_steps:
                metrics = await self.step()
                await after_step(self.steps_done, metrics)
        finally:
            await self.lookahead.cancel()

    async def step(self) -> Metrics:
        """Take the step's batch, update, sync."""
        clock = PhaseClock(partial(self.on_phase, self.steps_done + 1))
        batch = await self.next_batch()
        with clock.phase("update"):
            trained = await self.update(batch)
        metrics = {**summarise(batch, self.policy_version), **trained, "ppo/kl_coef": self.kl_controller.coef}
        if trained:
            self.require_engines_agree(metrics)
            self.kl_controller = self.kl_controller.updated(
                observed_kl=metrics["ppo/kl_per_response"], num_samples=batch.num_trained
            )
        await self.finish_rollouts()
        self.steps_done += 1
        waited = self._waited_s
        with clock.phase("sync"):
            synced = await self.sync_weights()
        work = {**self.count_work(batch), **timing(batch, clock), "time/wait_for_rollouts": waited}
        return {**metrics, **synced, **work, "ppo/skipped_steps": float(self.skipped_steps)}

    # ------------------------------------------------------------------------------------------------------- rollouts
    async def next_batch(self) -> StepBatch:
        """The batch of the next step. Raises ContractError where a token in it is older than the schedule allows."""
        self._awaited = step = self.steps_done + 1
        if self.lookahead.has_begun(step):
            self.on_phase(step, "generate")
        begun = time.perf_counter()
        collected = await self.lookahead.take(step, last=self.config.num_steps)
        self._waited_s += time.perf_counter() - begun
        batch, self.score_moments = chosen(collected, self.config, self.score_moments, self.max_failed_fraction)
        if batch.trained and (age := self.policy_version - batch.oldest_version) > self.config.staleness_bound:
            raise ContractError(
                f"step {step} holds a token that was sampled {age} updates ago, and ppo.schedule="
                f"{self.config.schedule} allows {self.config.staleness_bound}: an engine did not take the "
                "weights that it was given"
            )
        return batch

    async def _collect(self, step: int) -> Collected:
        def begins(phase: str) -> None:
            if self._awaited == step:
                self.on_phase(step, phase)

        return await self.collector.collect(step, PhaseClock(begins))

    async def finish_rollouts(self) -> None:
        """Where weights must not change under rollouts: wait for those of the next step."""
        if self.lookahead.must_wait:
            self.on_phase(self.steps_done + 1, "wait")
        begun = time.perf_counter()
        await self.lookahead.before_sync()
        self._waited_s += time.perf_counter() - begun

    # --------------------------------------------------------------------------------------------------------- update
    async def update(self, batch: StepBatch) -> Metrics:
        """Train on the batch. No metrics where its numbers are bad and ``ppo.contracts.on_bad_numbers`` skips it.

        A skipped step counts as one, so that the next samples other prompts with other seeds. The trainer has left its
        weights as they were before the minibatch that failed.
        """
        step = self.steps_done + 1
        try:
            return await self.trained_on(batch)
        except NumericsError as error:
            if self.config.contracts.on_bad_numbers == "stop" or isinstance(error, ContractError):
                raise
            self.skipped_steps += 1
            self.warn(f"step {step} is skipped, number {self.skipped_steps} of this run: {error}")
            return {}

    async def trained_on(self, batch: StepBatch, lost: int = 0) -> Metrics:
        try:
            return await self.trainer.update(
                step=self.steps_done + 1,
                shards=batch.trained,
                kl_coef=self.kl_controller.coef,
                baselines=batch.baselines,
            )
        except BlockLostError as error:
            if lost == MAX_LOST:
                raise
            self.warn(f"step {self.steps_done + 1}: all its rollouts are sampled again: {error}")
            return await self.trained_on(await self.resampled(batch), lost + 1)

    async def resampled(self, batch: StepBatch) -> StepBatch:
        """The batch with every block made again; what is known of the rollouts stays as it is."""
        old = batch.collected
        fresh = await self.collector.again(old.step, old.sampled, old.requests)
        blocks = {id(gone.rollouts): new for gone, new in zip(old.sampled, fresh, strict=True)}
        pairs = [(shard, blocks[id(shard.rollouts)]) for shard in batch.trained]
        trained = [replace(gone, rollouts=new.rollouts, ref_logprobs=new.ref_logprobs) for gone, new in pairs]
        return replace(batch, collected=replace(old, sampled=tuple(fresh)), trained=tuple(trained))

    async def sync_weights(self) -> Metrics:
        """Give the generators the trainer's weights. Their version is 1 + the steps behind them, resumed or not."""
        waited, self._waited_s = self._waited_s, 0.0
        ahead = self.config.staleness_bound > 0
        report = await self.weights.sync(self.steps_done + 1, waited_s=waited if ahead else None)
        self.policy_version = report.version
        self.lookahead.after_sync(self.steps_done + 1, last=self.config.num_steps)
        return {"ppo/sync_bytes": float(report.num_bytes), **report.fleet}

    def require_engines_agree(self, metrics: Metrics) -> None:
        """Stop when engine and trainer disagree about tokens they hold the same weights for; warn well before.

        Where all tokens were sampled with earlier weights there is nothing to compare.
        """
        difference, contracts = metrics.get("ppo/logprob_difference", 0.0), self.config.contracts
        found = f"engine and trainer log-probabilities differ by {difference:.4g} nats a token on average"
        if not difference <= contracts.max_logprob_difference:
            raise ContractError(
                f"{found} (ppo.contracts.max_logprob_difference is {contracts.max_logprob_difference:g}); the engine "
                "does not hold the weights that are trained, or samples in another precision: compare "
                "weight_sync.transport and generation.dtype with training.dtype"
            )
        if difference > contracts.warn_logprob_difference:
            self.warn(
                f"step {self.steps_done + 1}: {found} (ppo.contracts.warn_logprob_difference is "
                f"{contracts.warn_logprob_difference:g}; at {contracts.max_logprob_difference:g} the run stops)"
            )

    # ---------------------------------------------------------------------------------------------------------- state
    @property
    def tokens_lost(self) -> int:
        """Of responses that vanished and were sampled again, since the process began."""
        return self.collector.tokens_lost

    def state(self, kept: Kept | None = None) -> dict[str, object]:
        """All of the driver that a resumed run needs, but for the batches that are there already.

        Those are in ``kept``, or else in ``lookahead.kept()``, and belong to the state. Generators are synced anew.
        """
        kept = kept or self.lookahead.kept()
        return {
            "steps_done": self.steps_done,
            "policy_version": self.policy_version,
            "prompts": dict(kept.prompts),
            "kl_controller": self.kl_controller.state(),
            "score_moments": self.score_moments.state(),
            "skipped_steps": self.skipped_steps,
            "seed": self.seed,
        }

    def restore(self, state: Mapping[str, Any], batches: tuple[Collected, ...] = ()) -> None:
        """Continue from ``state``. Raises RlhfError when it belongs to a run with another seed."""
        if state["seed"] != self.seed:
            raise RlhfError(
                f"the saved run has seed {state['seed']}, this one {self.seed}; resume with seed={state['seed']}"
            )
        self.steps_done = int(state["steps_done"])
        self.policy_version = int(state["policy_version"])
        self.prompts.restore(state["prompts"])
        self.kl_controller = type(self.kl_controller).from_state(state["kl_controller"])
        self.score_moments = RunningMoments.from_state(state["score_moments"])
        self.skipped_steps = int(state.get("skipped_steps", 0))  # a state of an earlier version has none
        self.lookahead.restore(batches)


def make_kl_controller(config: KlConfig) -> FixedKL | AdaptiveKL:
    if config.controller == "fixed":
        return FixedKL(coef=config.coef)
    return AdaptiveKL(target=config.target, horizon=config.horizon, coef=config.coef)


def schedule_of(config: PpoConfig) -> Schedule:
    return Schedule(
        staleness=config.staleness_bound, in_flight=config.schedule == "async", in_turn=config.filter.enabled
    )
