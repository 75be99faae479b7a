"""Groups of equal actors that answer as one: fan out, gather, dispatch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from actors.answers import answer, answers
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import GenerationRequest, Graded, SamplingSettings, Score
from rlhf_ray.rewards.combine import combine
from rlhf_ray.roles import Ref, RolloutShard, ScoredShard
from rlhf_ray.selection import pairs_of
from rlhf_ray.stages.ppo_failure import Findings
from rlhf_ray.stages.ppo_plan import PpoWork, plan_ppo, with_sample_size
from rlhf_ray.stages.work import SequenceWork


class TrainerGroup:
    """The ranks that train one stage's models together."""

    def __init__(self, ranks: Sequence[Any], config: TrainingConfig, *, device: str, timeout_s: float) -> None:
        self.ranks = list(ranks)
        self.config = config
        self._device = device
        self._timeout_s = timeout_s

    async def start(self, spec: Any) -> None:
        """Let every rank join the group and load its share of the models."""
        address = (await self._all("free_address", [self.ranks[0].free_address.remote()]))[0]
        size = len(self.ranks)
        infos = [RankInfo(rank=r, world_size=size, address=address, device=self._device) for r in range(size)]
        await self._all("build", [rank.build.remote(spec, info) for rank, info in zip(self.ranks, infos, strict=True)])

    async def update(self, works: Sequence[Any]) -> MetricSums:
        """One optimizer step; one work list a rank."""
        parts = await self._all("update", [a.update.remote(w) for a, w in zip(self.ranks, works, strict=True)])
        return MetricSums.merged(parts)

    async def update_with(self, works: Sequence[Any], blocks: Sequence[Sequence[Ref]]) -> MetricSums:
        """Like :meth:`update`, each rank with the blocks of rollouts that it needs, resolved where it runs."""
        calls = zip(self.ranks, works, blocks, strict=True)
        return MetricSums.merged(await self._all("update", [a.update.remote(w, *refs) for a, w, refs in calls]))

    async def keep_failure(self, directory: str) -> str:
        """Let every rank write what it was doing when ``update`` raised; where in the step that was."""
        return str((await self._all("keep_failure", [a.keep_failure.remote(directory) for a in self.ranks]))[0])

    async def examine(
        self, directory: str, works: Sequence[Any], blocks: Sequence[Sequence[Ref]]
    ) -> tuple[Findings, ...]:
        """Let every rank do again what :meth:`keep_failure` wrote."""
        calls = zip(self.ranks, works, blocks, strict=True)
        return tuple(await self._all("examine", [a.examine.remote(directory, w, *refs) for a, w, refs in calls]))

    async def evaluate(self, works: Sequence[Any]) -> MetricSums:
        parts = await self._all("evaluate", [a.evaluate.remote(w) for a, w in zip(self.ranks, works, strict=True)])
        return MetricSums.merged(parts)

    async def score(self, works: Sequence[Any]) -> dict[int, tuple[float, ...]]:
        """Scores of every ranking's responses, by the index of the ranking."""
        parts = await self._all("score", [a.score.remote(w) for a, w in zip(self.ranks, works, strict=True)])
        return {index: scores for part in parts for index, scores in part}

    async def probe(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of a fixed text under the weights being trained."""
        return list((await self._all("probe", [a.probe.remote(list(token_ids)) for a in self.ranks]))[0])

    async def save(self, directory: str, *arguments: Any) -> None:
        await self._all("save", [a.save.remote(directory, *arguments) for a in self.ranks])

    async def save_state(self, directory: str, tag: str) -> None:
        await self._all("save_state", [a.save_state.remote(directory, tag) for a in self.ranks])

    async def load_state(self, directory: str, tag: str) -> None:
        await self._all("load_state", [a.load_state.remote(directory, tag) for a in self.ranks])

    async def _all(self, verb: str, refs: list[Any]) -> list[Any]:
        return await answers(refs, who="trainer rank", verb=verb, timeout_s=self._timeout_s)


class PpoTrainerGroup:
    """A trainer group that takes scored shards: plans the step, sends each rank what it needs."""

    def __init__(
        self,
        group: TrainerGroup,
        config: PpoConfig,
        *,
        seed: int,
        demonstrations: Callable[[int], Sequence[Sequence[SequenceWork]]],
    ) -> None:
        self.group = group
        self._config = config
        self._seed = seed
        self._demonstrations = demonstrations

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        """Run one PPO step. The result depends on the rollouts and not on the order in which shards came."""
        works, blocks = self._plan(step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)
        return with_sample_size((await self.group.update_with(works, blocks)).means())

    async def keep_failure(self, directory: str) -> str:
        return await self.group.keep_failure(directory)

    async def examine(
        self,
        directory: str,
        *,
        step: int,
        shards: Sequence[ScoredShard],
        kl_coef: float,
        baselines: Mapping[str, float],
    ) -> tuple[Findings, ...]:
        """Do again what failed in a step, with the state of that moment loaded; what each rank found."""
        works, blocks = self._plan(step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)
        return await self.group.examine(directory, works, blocks)

    def _plan(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> tuple[tuple[PpoWork, ...], list[list[Ref]]]:
        """Each rank's work, and the blocks that it needs."""
        shards = sorted(shards, key=lambda shard: shard.summaries[0].order)
        pairs = pairs_of(shards)
        works = plan_ppo(
            summaries=[summary for summary, _ in pairs],
            scores=[score.total for _, score in pairs],
            step_rewards={summary.order: score.step_rewards for summary, score in pairs if score.step_rewards},
            baselines=baselines,
            config=self._config,
            num_ranks=len(self.group.ranks),
            max_tokens=self.group.config.max_tokens_per_micro_batch,
            step=step,
            kl_coef=kl_coef,
            seed=self._seed,
            ptx=self._demonstrations(step),
        )
        return works, [_blocks_of(shards, set(work.scores)) for work in works]

    async def save(self, directory: str) -> None:
        await self.group.save(directory)

    async def save_state(self, directory: str, tag: str) -> None:
        await self.group.save_state(directory, tag)

    async def load_state(self, directory: str, tag: str) -> None:
        await self.group.load_state(directory, tag)


def _blocks_of(shards: Sequence[ScoredShard], orders: set[int]) -> list[Ref]:
    """References of the shards that hold any of ``orders``: rollouts, reference log-probabilities, and so on."""
    needed = [shard for shard in shards if any(s.order in orders for s in shard.summaries)]
    return [ref for shard in needed for ref in (shard.rollouts, shard.ref_logprobs)]


class GeneratorGroup:
    """The engines as one generator. Shards are cut by order, and each goes to the engine with the least to do."""

    def __init__(self, engines: Sequence[Any], *, shard_size: int, max_running: int, timeout_s: float) -> None:
        self.engines = list(engines)
        self._shard_size = shard_size
        self._max_running = max_running  # requests an engine is given at a time
        self._timeout_s = timeout_s

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        """Yield each shard when its last rollout is there."""
        ordered = sorted(requests, key=lambda r: r.order)
        waiting = deque(ordered[i : i + self._shard_size] for i in range(0, len(ordered), self._shard_size))
        load = [0] * len(self.engines)
        running: dict[asyncio.Future[RolloutShard], tuple[int, int]] = {}
        try:
            while waiting or running:
                while waiting and (engine := self._engine_for(len(waiting[0]), load)) is not None:
                    shard = waiting.popleft()
                    load[engine] += len(shard)
                    running[asyncio.ensure_future(self._shard(engine, shard, settings))] = (engine, len(shard))
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    engine, size = running.pop(task)
                    load[engine] -= size
                    yield task.result()
        finally:
            for task in running:
                task.cancel()

    async def load(self, model_path: str) -> None:
        """Let every engine serve another checkpoint of the same architecture."""
        loading = [engine.load.remote(model_path) for engine in self.engines]
        await answers(loading, who="generator", verb="load", timeout_s=self._timeout_s)

    def _engine_for(self, size: int, load: Sequence[int]) -> int | None:
        """The engine with the least to do, if ``size`` more fit there; an idle one takes a shard of any size."""
        engine = min(range(len(load)), key=lambda i: (load[i], i))
        return engine if load[engine] == 0 or load[engine] + size <= self._max_running else None

    async def _shard(
        self, engine: int, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> RolloutShard:
        rollouts, summaries = self.engines[engine].generate.options(num_returns=2).remote(list(requests), settings)
        known = await answer(summaries, who=f"generator {engine}", verb="generate", timeout_s=self._timeout_s)
        return RolloutShard(known, rollouts)


class ReferenceGroup:
    """Replicas of the frozen reference, used in turn."""

    def __init__(self, replicas: Sequence[Any], *, timeout_s: float, whole_distributions: bool = False) -> None:
        self._replicas = list(replicas)
        self._timeout_s = timeout_s
        self._whole_distributions = whole_distributions
        self._next = 0

    async def logprobs(self, shard: RolloutShard) -> Ref:
        self._next += 1
        replica = self._replicas[self._next % len(self._replicas)]
        verb = replica.distributions if self._whole_distributions else replica.logprobs
        return verb.remote(shard.rollouts)

    async def response_logprobs(self, sequences: Sequence[TokenSequence]) -> tuple[float, ...]:
        """Of each sequence the summed log-probability of the tokens that count, in the order of the sequences."""
        count = len(self._replicas)
        parts = [replica.response_logprobs.remote(sequences[i::count]) for i, replica in enumerate(self._replicas)]
        found = await answers(parts, who="reference", verb="response_logprobs", timeout_s=self._timeout_s)
        return tuple(found[i % count][i // count] for i in range(len(sequences)))


class AdapterReference:
    """With LoRA there is no reference server: the trainer computes it with the adapters off."""

    def __init__(self, marker: Ref) -> None:
        self._marker = marker

    async def logprobs(self, shard: RolloutShard) -> Ref:
        return self._marker


class RewardSourceGroup:
    """Replicas of one source of scores, used in turn."""

    def __init__(self, name: str, replicas: Sequence[Any], *, timeout_s: float) -> None:
        self._name = name
        self._replicas = list(replicas)
        self._timeout_s = timeout_s
        self._next = 0

    async def grade(self, shard: RolloutShard) -> tuple[Graded, ...]:
        """What the source says of each rollout."""
        self._next += 1
        replica = self._next % len(self._replicas)
        grades: tuple[Graded, ...] = await answer(
            self._replicas[replica].grade.remote(shard.rollouts),
            who=f"{self._name} {replica}",
            verb="score",
            timeout_s=self._timeout_s,
        )
        return grades


class CombinedRewards:
    """Several sources as one reward model: all are asked at once, and their scores are summed by weight."""

    def __init__(self, sources: Mapping[str, RewardSourceGroup], *, weights: Mapping[str, float]) -> None:
        self._sources = dict(sources)
        self._weights = dict(weights)

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        """One score a rollout; what a source cannot score has failed, a source that is gone is an error."""
        asked = [asyncio.ensure_future(source.grade(shard)) for source in self._sources.values()]
        try:
            grades = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
        lengths = [summary.response_length for summary in shard.summaries]
        return combine(dict(zip(self._sources, grades, strict=True)), weights=self._weights, lengths=lengths)
