"""Groups of equal actors that answer as one: fan out, gather, dispatch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from actors.answers import answers
from actors.replicas import Replicas
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import Graded, Score
from rlhf_ray.rewards.combine import combine
from rlhf_ray.roles import Ref, RolloutShard, ScoredShard
from rlhf_ray.selection import pairs_of
from rlhf_ray.stages.ppo_failure import Findings
from rlhf_ray.stages.ppo_plan import PpoWork, plan_ppo, with_sample_size
from rlhf_ray.stages.work import SequenceWork
from rlhf_ray.supervision.patience import Patience

TRAINER_RANK = "trainer rank"  # what errors call one


class TrainerGroup:
    """The ranks that train one stage's models together."""

    def __init__(self, ranks: Sequence[Any], config: TrainingConfig, *, device: str, timeout_s: float) -> None:
        self.ranks = list(ranks)
        self.config = config
        self._device = device
        self._patience = Patience(timeout_s)

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

    async def score(self, works: Sequence[Any]) -> dict[int, Any]:
        """Raw scores of every ranking's responses or of every response's steps, by the index of either."""
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
        begun = time.monotonic()
        found = await answers(refs, who=TRAINER_RANK, verb=verb, timeout_s=self._patience.of(verb))
        self._patience.saw(verb, time.monotonic() - begun)
        return found


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

    @property
    def ranks(self) -> list[Any]:
        return self.group.ranks

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
        held = [[summary.order for summary in shard.summaries] for shard in shards]
        return works, [_blocks_of(shards, held, work.scores.keys()) for work in works]

    async def save(self, directory: str) -> None:
        await self.group.save(directory)

    async def save_state(self, directory: str, tag: str) -> None:
        await self.group.save_state(directory, tag)

    async def load_state(self, directory: str, tag: str) -> None:
        await self.group.load_state(directory, tag)


def _blocks_of(shards: Sequence[ScoredShard], held: Sequence[Sequence[int]], orders: Set[int]) -> list[Ref]:
    """References of the shards that hold any of ``orders``: rollouts, reference log-probabilities, and so on."""
    needed = [shard for shard, own in zip(shards, held, strict=True) if not orders.isdisjoint(own)]
    return [ref for shard in needed for ref in (shard.rollouts, shard.ref_logprobs)]


class ReferenceGroup:
    """Replicas of the frozen reference, used in turn."""

    def __init__(self, replicas: Replicas, *, whole_distributions: bool = False) -> None:
        self._replicas = replicas
        self._verb = "distributions" if whole_distributions else "logprobs"

    async def logprobs(self, shard: RolloutShard) -> Ref:
        """Where the numbers lie, once they are there: until then another replica may have to compute them."""
        found: dict[str, Ref] = {}

        def call(replica: Any) -> Any:
            found["block"], done = self._of(replica).options(num_returns=2).remote(shard.rollouts)
            return done

        await self._replicas.ask(call, verb=self._verb, rollouts=names_of(shard))
        return found["block"]

    def _of(self, replica: Any) -> Any:
        return replica.distributions if self._verb == "distributions" else replica.logprobs

    async def response_logprobs(self, sequences: Sequence[TokenSequence]) -> tuple[float, ...]:
        """Of each sequence the summed log-probability of the tokens that count, in the order of the sequences."""
        count = len(self._replicas)
        found = await asyncio.gather(*(self._part(sequences, i, count) for i in range(count)))
        return tuple(found[i % count][i // count] for i in range(len(sequences)))

    async def _part(self, sequences: Sequence[TokenSequence], first: int, count: int) -> Any:
        part = sequences[first::count]
        rows = [f"sequence {index}" for index in range(first, len(sequences), count)]
        return await self._replicas.ask(
            lambda replica: replica.response_logprobs.remote(part), verb="response_logprobs", rollouts=rows
        )


class AdapterReference:
    """With LoRA there is no reference server: the trainer computes it with the adapters off."""

    def __init__(self, marker: Ref) -> None:
        self._marker = marker

    async def logprobs(self, shard: RolloutShard) -> Ref:
        return self._marker


class RewardSourceGroup:
    """Replicas of one source of scores, used in turn."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def grade(self, shard: RolloutShard) -> tuple[Graded, ...]:
        """What the source says of each rollout."""
        grades: tuple[Graded, ...] = await self._replicas.ask(
            lambda replica: replica.grade.remote(shard.rollouts), verb="score", rollouts=names_of(shard)
        )
        return grades


def names_of(shard: RolloutShard) -> list[str]:
    return [summary.rollout_id for summary in shard.summaries]


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
