"""A step's rollouts: sampled, scored as they arrive, and sampled again where they vanish or teach nothing.

prompts ──> generator ──> rollouts ──┬──> reference ─────> ref_logprobs ──┬──> what a step is trained on
                                     └──> reward model ──> scores ────────┘
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.errors import BlockLostError
from rlhf_ray.records import GenerationRequest, Prompt, RolloutSummary, SamplingSettings, Score
from rlhf_ray.roles import Generator, Ref, Reference, RewardModel, RolloutShard, ScoredShard
from rlhf_ray.seeds import request_seeds
from rlhf_ray.selection import finite_or_failed, num_groups, scored_shards, with_signal

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
class Collected:
    """All that was sampled for a step, and what the frozen servers say of it: nothing is chosen yet.

    ``greedy`` (ReMax) is, by prompt, its likeliest response; ``seconds`` are by phase.
    """

    step: int
    sampled: tuple[ScoredShard, ...]
    requests: Mapping[str, GenerationRequest]  # by rollout
    greedy: Mapping[str, tuple[RolloutSummary, Score]] = field(default_factory=dict)
    rounds: int = 1
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What was asked of the generators: enough to ask for the same again."""

    step: int
    requests: Mapping[str, GenerationRequest]
    settings: SamplingSettings


class PhaseClock:
    """Seconds by phase; told to whoever wants to know when one begins."""

    def __init__(self, on_begin: Callable[[str], None] = lambda phase: None) -> None:
        self.begun = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._on_begin = on_begin

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._on_begin(name)
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


class Collector:
    """Collects the rollouts of any step: what they are follows from the step, the prompts and the weights alone."""

    def __init__(
        self,
        *,
        generator: Generator,
        reference: Reference,
        reward_model: RewardModel,
        prompts: PromptSource,
        config: PpoConfig,
        settings: SamplingSettings,
        seed: int,
        warn: Callable[[str], None],
    ) -> None:
        self.generator = generator
        self.reference = reference
        self.reward_model = reward_model
        self.prompts = prompts
        self.config = config
        self.settings = settings
        self.seed = seed
        self.warn = warn
        self.tokens_lost = 0  # of responses that vanished and were sampled again, since the process began

    async def collect(self, step: int, clock: PhaseClock) -> Collected:
        """Rounds of sampling and scoring, until there are enough groups to learn from. Without a filter it is one."""
        rule, wanted = self.config.filter, self.config.prompts_per_step
        sampled: list[ScoredShard] = []
        greedy: dict[str, tuple[RolloutSummary, Score]] = {}
        asked: dict[str, GenerationRequest] = {}
        for number in range(rule.max_rounds if rule.enabled else 1):
            missing = wanted - num_groups(with_signal(scored_shards(sampled)))
            prompts = self.next_prompts(math.ceil(missing * rule.oversampling), number)
            requests = self.requests_for(step, prompts, number)
            shards, answers = await asyncio.gather(
                self.sample(step, requests, clock), self.greedy_answers(step, prompts)
            )
            asked |= {request.rollout_id: request for request in requests}
            sampled += shards
            greedy |= answers
            if not rule.enabled or num_groups(with_signal(scored_shards(sampled))) >= wanted:
                break
        return Collected(step, tuple(sampled), asked, greedy, rounds=number + 1, seconds=dict(clock.seconds))

    # ------------------------------------------------------------------------------------------------------- requests
    def next_prompts(self, count: int, number: int) -> list[Prompt]:
        """The prompts of round ``number``; their places follow those of the rounds before."""
        first = number * self.config.prompts_per_step * MAX_OVERSAMPLING
        prompts = self.prompts.next_prompts(count)
        return [replace(p, order=first + p.order) for p in prompts] if first else list(prompts)

    def requests_for(self, step: int, prompts: Sequence[Prompt], number: int) -> list[GenerationRequest]:
        """Each prompt ``responses_per_prompt`` times, every one with a seed of its own.

        Where an epoch ends in the round a prompt may stand in it twice: its responses are then counted on.
        """
        many = self.config.responses_per_prompt
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

    # ------------------------------------------------------------------------------------------- sampling and scoring
    async def sample(self, step: int, requests: Sequence[GenerationRequest], clock: PhaseClock) -> list[ScoredShard]:
        """Sample every request; each shard is scored while the others are still being sampled.

        The order of arrival ends here: shards come back in the order of their rollouts.
        """
        scoring: list[asyncio.Task[ScoredShard]] = []
        asked = Asked(step, {request.rollout_id: request for request in requests}, self.settings)
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

    async def scored(self, shard: RolloutShard, asked: Asked) -> ScoredShard:
        async def both(shard: RolloutShard) -> tuple[Ref, tuple[Score, ...]]:
            return await asyncio.gather(self.reference.logprobs(shard), self.reward_model.score(shard))

        shard, (ref_logprobs, scores) = await self._surviving(shard, asked, both)
        return ScoredShard(shard.summaries, shard.rollouts, ref_logprobs, finite_or_failed(scores))

    async def greedy_answers(self, step: int, prompts: Sequence[Prompt]) -> dict[str, tuple[RolloutSummary, Score]]:
        """ReMax: the likeliest response to each prompt and its score. A prompt whose response fails is left out."""
        if self.config.advantages != "remax":
            return {}
        requests = [
            GenerationRequest(f"{step}/{p.prompt_id}/greedy", p.prompt_id, p.order, p.token_ids, seed=0)
            for p in {p.prompt_id: p for p in prompts}.values()
        ]
        greedy = replace(self.settings, temperature=0.0)
        asked = Asked(step, {request.rollout_id: request for request in requests}, greedy)
        answers = {}
        async for shard in self.generator.generate(requests, greedy):
            _, scores = await self._surviving(shard, asked, self.reward_model.score)
            for summary, score in zip(shard.summaries, finite_or_failed(scores), strict=True):
                if not score.failed:
                    answers[summary.prompt_id] = summary, score
        return answers

    # ----------------------------------------------------------------------------------------------- what has vanished
    async def _surviving(
        self, shard: RolloutShard, asked: Asked, work: Callable[[RolloutShard], Awaitable[T]]
    ) -> tuple[RolloutShard, T]:
        """What ``work`` makes of a shard. One that vanishes with its node is sampled again, the same."""
        for _ in range(MAX_LOST):
            try:
                return shard, await work(shard)
            except BlockLostError as error:
                self.warn(f"step {asked.step}: {len(shard.summaries)} rollouts are sampled again: {error}")
                shard = await self._again(shard, asked)
        return shard, await work(shard)

    async def _again(self, shard: RolloutShard | ScoredShard, asked: Asked) -> RolloutShard:
        self.tokens_lost += sum(summary.response_length for summary in shard.summaries)
        requests = [asked.requests[summary.rollout_id] for summary in shard.summaries]
        (same,) = [shard async for shard in self.generator.generate(requests, asked.settings)]
        return same

    async def again(
        self, step: int, shards: Sequence[ScoredShard], requests: Mapping[str, GenerationRequest]
    ) -> list[ScoredShard]:
        """Every block made again, by the weights that the generators hold now."""
        asked = Asked(step, requests, self.settings)

        async def same(shard: ScoredShard) -> ScoredShard:
            return await self.scored(await self._again(shard, asked), asked)

        return list(await asyncio.gather(*(same(shard) for shard in shards)))
