"""The PPO loop. It holds references and scalars, never token tensors; it knows neither Ray, nor vLLM, nor DeepSpeed.

prompts ──> generator ──> rollouts ──┬──> reference ─────> ref_logprobs ──┐
                ^                    └──> reward model ──> scores ────────┤
                │                                                         v
                └────────────── weights, version, checksum <────────── trainer
"""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from rlhf_ray.algo.controllers import AdaptiveKL, FixedKL
from rlhf_ray.algo.running import RunningMoments
from rlhf_ray.config.algorithm import KlConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.errors import BlockLostError, ContractError, NumericsError, RlhfError
from rlhf_ray.records import GenerationRequest, Prompt, RolloutSummary, SamplingSettings, Score
from rlhf_ray.roles import Generator, PpoTrainer, Ref, Reference, RewardModel, RolloutShard, ScoredShard, WeightSync
from rlhf_ray.seeds import request_seeds
from rlhf_ray.selection import (
    earned_on_the_way,
    finite_or_failed,
    kept_where,
    normalised,
    num_groups,
    num_tokens,
    pairs_of,
    scaled,
    scored_shards,
    updated_moments,
    with_signal,
    without_failed,
)
from rlhf_ray.stages.ppo_plan import shaped_scores

Metrics = Mapping[str, float]
T = TypeVar("T")
MAX_LOST = 3  # times that the same rollouts may vanish before the run ends
MAX_OVERSAMPLING = 16  # of ppo.filter.oversampling: keeps the places of different rounds apart


class PromptSource(Protocol):
    """Gives prompts for ever; its place is part of the run's state."""

    def next_prompts(self, count: int) -> Sequence[Prompt]:
        """The next ``count`` prompts, their ``order`` counted from 0."""
        ...

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


@dataclass(frozen=True)
class StepBatch:
    """A step's rollouts: all that were sampled, and those that are trained on."""

    sampled: tuple[ScoredShard, ...]
    trained: tuple[ScoredShard, ...]
    baselines: Mapping[str, float]  # ReMax: by prompt, the score of its greedy response
    rounds: int
    requests: Mapping[str, GenerationRequest]  # by rollout

    @property
    def num_trained(self) -> int:
        return sum(len(shard.summaries) for shard in self.trained)


class Driver:
    """Coordinates rollouts, scoring, updates and weight sync, one step at a time (schedule ``sync``)."""

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
        self.max_failed_fraction = max_failed_fraction
        self.warn = warn
        self.on_phase = on_phase  # told (step, phase) when a phase begins
        self.kl_controller = make_kl_controller(config.kl)
        self.score_moments = RunningMoments()
        self.skipped_steps = 0
        self.tokens_lost = 0  # of responses that vanished and were sampled again, since the process began

    async def run(self, after_step: Callable[[int, Metrics], Awaitable[None]]) -> None:
        """Train until ``config.num_steps`` steps are done, calling ``after_step(step, metrics)`` after each."""
        await self.sync_weights()
        while self.steps_done < self.config.num_steps:
            metrics = await self.step()
            await after_step(self.steps_done, metrics)

    async def step(self) -> Metrics:
        """Sample, score, update, sync."""
        clock = PhaseClock(partial(self.on_phase, self.steps_done + 1))
        batch = await self.collect(clock)
        with clock.phase("update"):
            trained = await self.update(batch)
        metrics = {**summarise(batch, self.policy_version), **trained, "ppo/kl_coef": self.kl_controller.coef}
        if trained:
            self.require_engines_agree(metrics)
            self.kl_controller = self.kl_controller.updated(
                observed_kl=metrics["ppo/kl_per_response"], num_samples=batch.num_trained
            )
        self.steps_done += 1
        with clock.phase("sync"):
            synced = await self.sync_weights()
        return {**metrics, **synced, **clock.metrics(batch), "ppo/skipped_steps": float(self.skipped_steps)}

    async def collect(self, clock: PhaseClock) -> StepBatch:
        """Rounds of sampling and scoring, until there are enough groups to learn from. Without a filter it is one."""
        rule, wanted = self.config.filter, self.config.prompts_per_step
        sampled: list[ScoredShard] = []
        greedy: dict[str, tuple[RolloutSummary, Score]] = {}
        asked: dict[str, GenerationRequest] = {}
        for number in range(rule.max_rounds if rule.enabled else 1):
            missing = wanted - num_groups(with_signal(scored_shards(sampled)))
            prompts = self.next_prompts(math.ceil(missing * rule.oversampling), number)
            requests = self.requests_for(prompts, number)
            shards, answers = await asyncio.gather(self.sample(requests, clock), self.greedy_answers(prompts))
            asked |= {request.rollout_id: request for request in requests}
            sampled += shards
            greedy |= answers
            if not rule.enabled or num_groups(with_signal(scored_shards(sampled))) >= wanted:
                break
        trained = without_failed(sampled, self.max_failed_fraction)
        if self.config.advantages == "remax":
            trained = kept_where(trained, lambda summary, _: summary.prompt_id in greedy)
        informative = with_signal(trained) if rule.enabled else trained
        if sum(len(shard.summaries) for shard in informative) >= self.config.num_minibatches:
            trained = informative  # else groups without signal fill up: they weigh nothing
        if self.config.reward.normalise_scores:
            self.score_moments = updated_moments(self.score_moments, scored_shards(sampled))
            trained = normalised(trained, self.score_moments)
        baselines = {prompt: self.baseline(*answer) for prompt, answer in greedy.items()}
        return StepBatch(tuple(sampled), tuple(trained), baselines, rounds=number + 1, requests=asked)

    async def sample(self, requests: Sequence[GenerationRequest], clock: PhaseClock) -> list[ScoredShard]:
        """Sample every request; each shard is scored while the others are still being sampled.

        The order of arrival ends here: shards come back in the order of their rollouts.
        """
        scoring: list[asyncio.Task[ScoredShard]] = []
        asked = {request.rollout_id: request for request in requests}
        try:
            with clock.phase("generate"):
                async for shard in self.generator.generate(requests, self.settings):
                    scoring.append(asyncio.create_task(self.scored(shard, asked)))  # noqa: PERF401 -- started at once
            with clock.phase("score"):
                shards = await asyncio.gather(*scoring)
        finally:
            for task in scoring:
                task.cancel()
            await asyncio.gather(*scoring, return_exceptions=True)
        return sorted(shards, key=lambda shard: shard.summaries[0].order)

    async def scored(self, shard: RolloutShard, asked: Mapping[str, GenerationRequest]) -> ScoredShard:
        async def both(shard: RolloutShard) -> tuple[Ref, tuple[Score, ...]]:
            return await asyncio.gather(self.reference.logprobs(shard), self.reward_model.score(shard))

        shard, (ref_logprobs, scores) = await self.surviving(shard, asked, self.settings, both)
        return ScoredShard(shard.summaries, shard.rollouts, ref_logprobs, finite_or_failed(scores))

    async def surviving(
        self,
        shard: RolloutShard,
        asked: Mapping[str, GenerationRequest],
        settings: SamplingSettings,
        work: Callable[[RolloutShard], Awaitable[T]],
    ) -> tuple[RolloutShard, T]:
        """What ``work`` makes of a shard. One that vanishes with its node is sampled again, the same."""
        for _ in range(MAX_LOST):
            try:
                return shard, await work(shard)
            except BlockLostError as error:
                self.warn(f"step {self.steps_done + 1}: {len(shard.summaries)} rollouts are sampled again: {error}")
                shard = await self.again(shard, asked, settings)
        return shard, await work(shard)

    async def again(
        self, shard: RolloutShard | ScoredShard, asked: Mapping[str, GenerationRequest], settings: SamplingSettings
    ) -> RolloutShard:
        self.tokens_lost += sum(summary.response_length for summary in shard.summaries)
        requests = [asked[summary.rollout_id] for summary in shard.summaries]
        (same,) = [shard async for shard in self.generator.generate(requests, settings)]
        return same

    async def resampled(self, batch: StepBatch) -> StepBatch:
        """The batch with every block made again; what is known of the rollouts stays as it is."""

        async def same(shard: ScoredShard) -> ScoredShard:
            return await self.scored(await self.again(shard, batch.requests, self.settings), batch.requests)

        fresh = await asyncio.gather(*(same(shard) for shard in batch.sampled))
        blocks = {id(old.rollouts): new for old, new in zip(batch.sampled, fresh, strict=True)}
        pairs = [(shard, blocks[id(shard.rollouts)]) for shard in batch.trained]
        trained = [replace(old, rollouts=new.rollouts, ref_logprobs=new.ref_logprobs) for old, new in pairs]
        return replace(batch, sampled=tuple(fresh), trained=tuple(trained))

    async def greedy_answers(self, prompts: Sequence[Prompt]) -> dict[str, tuple[RolloutSummary, Score]]:
        """ReMax: the likeliest response to each prompt and its score. A prompt whose response fails is left out."""
        if self.config.advantages != "remax":
            return {}
        requests = [
            GenerationRequest(f"{self.steps_done + 1}/{p.prompt_id}/greedy", p.prompt_id, p.order, p.token_ids, seed=0)
            for p in {p.prompt_id: p for p in prompts}.values()
        ]
        asked, greedy = {r.rollout_id: r for r in requests}, replace(self.settings, temperature=0.0)
        answers = {}
        async for shard in self.generator.generate(requests, greedy):
            _, scores = await self.surviving(shard, asked, greedy, self.reward_model.score)
            for summary, score in zip(shard.summaries, finite_or_failed(scores), strict=True):
                if not score.failed:
                    answers[summary.prompt_id] = summary, score
        return answers

    def baseline(self, summary: RolloutSummary, score: Score) -> float:
        """What a greedy response earns, on the scale of the scores that are trained on."""
        if self.config.reward.normalise_scores:
            score = scaled(score, self.score_moments)
        return shaped_scores([summary], [score.total], self.config)[0] + earned_on_the_way(score)

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

    async def sync_weights(self) -> Metrics:
        """Give the generators the trainer's weights. Their version is 1 + the steps behind them, resumed or not."""
        report = await self.weights.sync(self.steps_done + 1)
        self.policy_version = report.version
        return {"ppo/sync_bytes": float(report.num_bytes), **report.fleet}

    def next_prompts(self, count: int, number: int) -> list[Prompt]:
        """The prompts of round ``number``; their places follow those of the rounds before."""
        first = number * self.config.prompts_per_step * MAX_OVERSAMPLING
        prompts = self.prompts.next_prompts(count)
        return [replace(p, order=first + p.order) for p in prompts] if first else list(prompts)

    def requests_for(self, prompts: Sequence[Prompt], number: int) -> list[GenerationRequest]:
        """Each prompt ``responses_per_prompt`` times, every one with a seed of its own.

        Where an epoch ends in the round a prompt may stand in it twice: its responses are then counted on.
        """
        step, many = self.steps_done + 1, self.config.responses_per_prompt
        orders = [prompt.order * many + sample for prompt in prompts for sample in range(many)]
        numbered = zip(orders, request_seeds(self.seed, step, orders), strict=True)
        requests = []
        sampled: Counter[str] = Counter()
        for prompt in prompts:
            name, first = prompt.prompt_id, sampled[prompt.prompt_id]
            sampled[name] = first + many
            for sample in range(first, first + many):
                order, seed = next(numbered)
                rollout_id = f"{step}/{name}{'/again' * number}/{sample}"
                requests.append(GenerationRequest(rollout_id, name, order, prompt.token_ids, seed))
        return requests

    def require_engines_agree(self, metrics: Metrics) -> None:
        """Stop when engine and trainer disagree about tokens they hold the same weights for; warn well before."""
        difference, contracts = metrics["ppo/logprob_difference"], self.config.contracts
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
    def state(self) -> dict[str, object]:
        """All of the driver that a resumed run needs. Generators are synced anew on resume."""
        return {
            "steps_done": self.steps_done,
            "policy_version": self.policy_version,
            "prompts": dict(self.prompts.state()),
            "kl_controller": self.kl_controller.state(),
            "score_moments": self.score_moments.state(),
            "skipped_steps": self.skipped_steps,
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
        self.score_moments = RunningMoments.from_state(state["score_moments"])
        self.skipped_steps = int(state.get("skipped_steps", 0))  # a state of an earlier version has none


def make_kl_controller(config: KlConfig) -> FixedKL | AdaptiveKL:
    if config.controller == "fixed":
        return FixedKL(coef=config.coef)
    return AdaptiveKL(target=config.target, horizon=config.horizon, coef=config.coef)


def summarise(batch: StepBatch, policy_version: int) -> dict[str, float]:
    """What summaries and scores alone say about a step: the same bits however the step was cut into shards."""
    pairs = pairs_of(scored_shards(batch.sampled))  # in order: a floating-point sum depends on the order of its terms
    summaries = [summary for summary, _ in pairs]
    scores = np.array([score.total for _, score in pairs], dtype=np.float64)
    sources = sorted({source for _, score in pairs for source in score.parts})
    num_sampled = sum(len(shard.summaries) for shard in batch.sampled)
    return {
        "ppo/score_mean": float(scores.mean()),
        "ppo/score_std": float(scores.std()),
        **{f"reward/{s}": float(np.mean([score.parts[s] for _, score in pairs if s in score.parts])) for s in sources},
        "ppo/failed_fraction": 1.0 - len(pairs) / num_sampled,
        "ppo/trained_fraction": batch.num_trained / num_sampled,
        "ppo/sampling_rounds": float(batch.rounds),
        "ppo/response_length": float(np.mean([s.response_length for s in summaries])),
        "ppo/finished_fraction": float(np.mean([s.finish_reason == "stop" for s in summaries])),
        **num_tokens(batch.sampled, batch.trained),
        "ppo/policy_version": float(policy_version),
        "ppo/staleness": float(policy_version - min(s.policy_version for s in summaries)),
    }


class PhaseClock:
    """Seconds by phase of one step."""

    def __init__(self, on_begin: Callable[[str], None] = lambda phase: None) -> None:
        self._begun = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._on_begin = on_begin

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._on_begin(name)
        begun = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begun

    def metrics(self, batch: StepBatch) -> dict[str, float]:
        """``time/<phase>`` in seconds and the rates that follow from them."""
        sampled = sum(s.response_length for shard in batch.sampled for s in shard.summaries)
        total = sampled + sum(s.prompt_length for shard in batch.sampled for s in shard.summaries)
        trained = sum(s.prompt_length + s.response_length for shard in batch.trained for s in shard.summaries)
        step = time.perf_counter() - self._begun
        return {
            **{f"time/{name}": seconds for name, seconds in self._seconds.items()},
            "time/step": step,
            "time/tokens_per_second": total / step,
            "time/generate_tokens_per_second": sampled / max(self._seconds["generate"], 1e-9),
            "time/update_tokens_per_second": trained / max(self._seconds["update"], 1e-9),
        }
