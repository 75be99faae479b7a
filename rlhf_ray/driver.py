"""The PPO loop. It holds references and scalars, never token tensors; it knows neither Ray, nor vLLM, nor DeepSpeed.

prompts ──> generator ──> rollouts ──┬──> reference ─────> ref_logprobs ──┐
                ^                    └──> reward model ──> scores ────────┤
                │                                                         v
                └────────────── weights, version, checksum <────────── trainer
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlhf_ray.algo.controllers import AdaptiveKL, FixedKL
from rlhf_ray.config.algorithm import KlConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.errors import NumericsError, RlhfError
from rlhf_ray.records import GenerationRequest, Prompt, RolloutSummary, SamplingSettings
from rlhf_ray.roles import Generator, PpoTrainer, Reference, RewardModel, RolloutShard, ScoredShard, WeightSync

Metrics = Mapping[str, float]


class PromptSource(Protocol):
    """Gives batches of prompts for ever; its place is part of the run's state."""

    def next_batch(self) -> Sequence[Prompt]: ...

    def state(self) -> Mapping[str, object]: ...

    def restore(self, state: Mapping[str, object]) -> None: ...


@dataclass(frozen=True)
class Roles:
    """Who takes part in a PPO run."""

    generator: Generator
    reference: Reference
    reward_model: RewardModel
    trainer: PpoTrainer
    weights: WeightSync


class Driver:
    """Coordinates rollouts, scoring, updates and weight sync, one step at a time (schedule ``sync``)."""

    def __init__(
        self, *, roles: Roles, prompts: PromptSource, config: PpoConfig, settings: SamplingSettings, seed: int
    ) -> None:
        self.generator = roles.generator
        self.reference = roles.reference
        self.reward_model = roles.reward_model
        self.trainer = roles.trainer
        self.weights = roles.weights
        self.prompts = prompts
        self.config = config
        self.settings = settings
        self.seed = seed
        self.steps_done = 0
        self.policy_version = 0
        self.kl_controller = make_kl_controller(config.kl)

    async def run(self, after_step: Callable[[int, Metrics], Awaitable[None]]) -> None:
        """Train until ``config.num_steps`` steps are done, calling ``after_step(step, metrics)`` after each."""
        await self.sync_weights()
        while self.steps_done < self.config.num_steps:
            metrics = await self.step()
            await after_step(self.steps_done, metrics)

    async def step(self) -> Metrics:
        """Sample, score, update, sync."""
        clock = PhaseClock()
        requests = self.next_requests()
        shards = await self.collect(requests, clock)
        with clock.phase("update"):
            metrics = await self.trainer.update(
                step=self.steps_done + 1, shards=shards, kl_coef=self.kl_controller.coef
            )
        metrics = {**summarise(shards, self.policy_version), **metrics, "ppo/kl_coef": self.kl_controller.coef}
        self.require_engines_agree(metrics)
        self.kl_controller = self.kl_controller.updated(
            observed_kl=metrics["ppo/kl_per_response"], num_samples=len(requests)
        )
        self.steps_done += 1
        with clock.phase("sync"):
            synced = await self.sync_weights()
        return {**metrics, **synced, **clock.metrics(shards)}

    async def collect(self, requests: Sequence[GenerationRequest], clock: PhaseClock) -> list[ScoredShard]:
        """Sample every request; each shard is scored while the others are still being sampled.

        The order of arrival ends here: shards come back in the order of their rollouts.
        """
        scoring: list[asyncio.Task[ScoredShard]] = []
        try:
            with clock.phase("generate"):
                async for shard in self.generator.generate(requests, self.settings):
                    scoring.append(asyncio.create_task(self.scored(shard)))  # noqa: PERF401 -- started at once
            with clock.phase("score"):
                shards = await asyncio.gather(*scoring)
        finally:
            for task in scoring:
                task.cancel()
            await asyncio.gather(*scoring, return_exceptions=True)
        return sorted(shards, key=lambda shard: shard.summaries[0].order)

    async def scored(self, shard: RolloutShard) -> ScoredShard:
        ref_logprobs, scores = await asyncio.gather(self.reference.logprobs(shard), self.reward_model.score(shard))
        return ScoredShard(shard.summaries, shard.rollouts, ref_logprobs, tuple(score.total for score in scores))

    async def sync_weights(self) -> Metrics:
        """Give the generators the trainer's weights. Their version is 1 + the steps behind them, resumed or not."""
        report = await self.weights.sync(self.steps_done + 1)
        self.policy_version = report.version
        return {"ppo/sync_bytes": float(report.num_bytes)}

    def next_requests(self) -> list[GenerationRequest]:
        """The step's prompts, each ``responses_per_prompt`` times, every one with a seed of its own."""
        requests = []
        for prompt in self.prompts.next_batch():
            for sample in range(self.config.responses_per_prompt):
                order = prompt.order * self.config.responses_per_prompt + sample
                requests.append(
                    GenerationRequest(
                        rollout_id=f"{self.steps_done + 1}/{prompt.prompt_id}/{sample}",
                        prompt_id=prompt.prompt_id,
                        order=order,
                        prompt_ids=prompt.token_ids,
                        seed=request_seed(self.seed, self.steps_done + 1, order),
                    )
                )
        return requests

    def require_engines_agree(self, metrics: Metrics) -> None:
        """Stop when engine and trainer disagree about tokens they hold the same weights for."""
        difference, limit = metrics["ppo/logprob_difference"], self.config.contracts.max_logprob_difference
        if not difference <= limit:
            raise NumericsError(
                f"engine and trainer log-probabilities differ by {difference:.4g} nats a token on average "
                f"(ppo.contracts.max_logprob_difference is {limit:g}); the engine does not hold the weights that are "
                "trained, or samples in another precision: compare weight_sync.transport and generation.dtype with "
                "training.dtype"
            )

    # ---------------------------------------------------------------------------------------------------------- state
    def state(self) -> dict[str, object]:
        """All of the driver that a resumed run needs. Generators are synced anew on resume."""
        return {
            "steps_done": self.steps_done,
            "policy_version": self.policy_version,
            "prompts": dict(self.prompts.state()),
            "kl_controller": self.kl_controller.state(),
            "seed": self.seed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``. Raises RlhfError when it belongs to a run with another seed."""
        if state["seed"] != self.seed:
            raise RlhfError(
                f"the saved run has seed {state['seed']}, this one {self.seed}; resume with seed={state['seed']}"
            )
        self.steps_done = int(state["steps_done"])
        self.policy_version = int(state["policy_version"])
        self.prompts.restore(state["prompts"])
        self.kl_controller = type(self.kl_controller).from_state(state["kl_controller"])


def make_kl_controller(config: KlConfig) -> FixedKL | AdaptiveKL:
    if config.controller == "fixed":
        return FixedKL(coef=config.coef)
    return AdaptiveKL(target=config.target, horizon=config.horizon, coef=config.coef)


def request_seed(seed: int, step: int, order: int) -> int:
    """A seed for one response: the same whatever engine samples it and when. 31 bits."""
    return int(np.random.SeedSequence([seed, step, order]).generate_state(1)[0]) >> 1


def summarise(shards: Sequence[ScoredShard], policy_version: int) -> dict[str, float]:
    """What summaries and scores alone say about a step: the same bits however the step was cut into shards."""
    pairs = [pair for shard in shards for pair in zip(shard.summaries, shard.scores, strict=True)]
    pairs.sort(key=lambda pair: pair[0].order)  # a floating-point sum depends on the order of its terms
    summaries = [summary for summary, _ in pairs]
    scores = np.array([score for _, score in pairs], dtype=np.float64)
    return {
        "ppo/score_mean": float(scores.mean()),
        "ppo/score_std": float(scores.std()),
        "ppo/response_length": float(np.mean([s.response_length for s in summaries])),
        "ppo/finished_fraction": float(np.mean([s.finish_reason == "stop" for s in summaries])),
        "ppo/policy_version": float(policy_version),
        "ppo/staleness": float(policy_version - min(s.policy_version for s in summaries)),
    }


class PhaseClock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - begun

    def metrics(self, shards: Sequence[ScoredShard]) -> dict[str, float]:
        """``time/<phase>`` in seconds and the rates that follow from them."""
        summaries: list[RolloutSummary] = [s for shard in shards for s in shard.summaries]
        sampled = sum(s.response_length for s in summaries)
        total = sum(s.length for s in summaries)
        step = time.perf_counter() - self._begun
        return {
            **{f"time/{name}": seconds for name, seconds in self._seconds.items()},
            "time/step": step,
            "time/tokens_per_second": total / step,
            "time/generate_tokens_per_second": sampled / max(self._seconds["generate"], 1e-9),
            "time/update_tokens_per_second": total / max(self._seconds["update"], 1e-9),
        }
