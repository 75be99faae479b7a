"""Groups of actors: who gets what, and that nothing depends on who is fast."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from actors.generators import GeneratorGroup
from actors.groups import (
    CombinedRewards,
    PpoTrainerGroup,
    ReferenceGroup,
    RewardSourceGroup,
    TrainerGroup,
)
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.errors import RlhfError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import GenerationRequest, Graded, RolloutSummary, SamplingSettings, Score
from rlhf_ray.roles import RolloutShard, ScoredShard
from tests.actors.fakes import FakeHandle, replicas_of

SETTINGS = SamplingSettings()


def requests(count: int) -> list[GenerationRequest]:
    prompt = np.zeros(2, dtype=np.int32)
    return [GenerationRequest(f"r{i}", f"p{i}", i, prompt, seed=i) for i in range(count)]


def summary(order: int) -> RolloutSummary:
    return RolloutSummary(f"r{order}", f"p{order}", order, 2, 1 + order % 5, "stop", 1)


class Engine:
    """Takes ``seconds`` for a shard; notes what it was given and how much it had at a time."""

    def __init__(self, seconds: float = 0.001, fails_at: int = -1) -> None:
        self.seconds, self.fails_at = seconds, fails_at
        self.shards: list[list[int]] = []
        self.running = self.most_running = 0
        self.cancelled = 0

    async def generate(self, given: Sequence[GenerationRequest], settings: SamplingSettings) -> Any:
        orders = [request.order for request in given]
        self.shards.append(orders)
        self.running += len(orders)
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= len(orders)
        if self.fails_at in orders:
            raise RlhfError("out of memory")
        return f"rollouts {orders[0]}", tuple(summary(order) for order in orders)


class Certain:
    """Says of every token that its log-probability is minus the prompt's first token, minus its own number."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def next_token_logprobs(self, prompts: Sequence[Any], token_ids: Sequence[int]) -> list[list[float]]:
        self.asked += [int(prompt[0]) for prompt in prompts]
        return [[-float(prompt[0]) - token / 10 for token in token_ids] for prompt in prompts]


async def test_next_tokens_are_asked_of_all_engines_and_come_back_in_the_prompts_order() -> None:
    engines = [Certain(), Certain()]
    group = GeneratorGroup([FakeHandle(engine) for engine in engines], shard_size=2, max_running=9, timeout_s=5)
    prompts = [np.array([number, 7], dtype=np.int32) for number in range(5)]
    found = await group.next_token_logprobs(prompts, (3, 4))
    assert found == [pytest.approx([-number - 0.3, -number - 0.4]) for number in range(5)]
    assert [engine.asked for engine in engines] == [[0, 2, 4], [1, 3]]


async def test_all_engines_go_to_sleep() -> None:
    class Tired:
        asleep = False

        async def sleep(self) -> None:
            self.asleep = True

    engines = [Tired(), Tired()]
    group = GeneratorGroup([FakeHandle(engine) for engine in engines], shard_size=2, max_running=9, timeout_s=5)
    await group.sleep()
    assert all(engine.asleep for engine in engines)


def group_of(engines: Sequence[Engine], *, shard_size: int, max_running: int = 1000) -> GeneratorGroup:
    handles = [FakeHandle(engine) for engine in engines]
    return GeneratorGroup(handles, shard_size=shard_size, max_running=max_running, timeout_s=5)


async def gathered(group: GeneratorGroup, given: Sequence[GenerationRequest]) -> list[RolloutShard]:
    return [shard async for shard in group.generate(given, SETTINGS)]


# ----------------------------------------------------------------------------------------------------------- generators
async def test_every_request_comes_back_exactly_once_in_shards_cut_by_order() -> None:
    mixed = random.Random(1).sample(requests(10), 10)
    engines = [Engine(0.003), Engine(0.001)]
    shards = await gathered(group_of(engines, shard_size=4), mixed)
    cuts = sorted([s.order for s in shard.summaries] for shard in shards)
    assert cuts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert sorted(engines[0].shards + engines[1].shards) == cuts


async def test_the_cut_does_not_depend_on_the_number_of_engines() -> None:
    for count in (1, 2, 3):
        shards = await gathered(group_of([Engine() for _ in range(count)], shard_size=4), requests(10))
        assert sorted([s.order for s in shard.summaries] for shard in shards) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_a_shard_is_given_out_as_soon_as_it_is_there() -> None:
    engines = [Engine(0.2), Engine(0.001)]
    first = await anext(group_of(engines, shard_size=2).generate(requests(4), SETTINGS))
    assert [s.order for s in first.summaries] == [2, 3]
    assert await first.rollouts == "rollouts 2"


async def test_each_shard_goes_to_the_engine_with_the_least_to_do() -> None:
    slow, fast = Engine(0.12), Engine(0.01)
    await gathered(group_of([slow, fast], shard_size=1, max_running=1), requests(8))
    assert slow.shards == [[0]]
    assert fast.shards == [[order] for order in range(1, 8)]


async def test_engines_share_evenly_before_any_has_finished() -> None:
    engines = [Engine(0.01), Engine(0.01), Engine(0.01)]
    await gathered(group_of(engines, shard_size=2), requests(12))
    assert [engine.shards for engine in engines] == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]


async def test_an_engine_never_has_more_than_it_may_run() -> None:
    engines = [Engine(), Engine()]
    await gathered(group_of(engines, shard_size=4, max_running=10), requests(80))
    assert [engine.most_running for engine in engines] == [8, 8]


async def test_a_shard_larger_than_the_limit_still_runs_alone() -> None:
    engine = Engine()
    await gathered(group_of([engine], shard_size=6, max_running=4), requests(12))
    assert engine.most_running == 6


async def test_a_failing_shard_ends_the_wait_and_names_its_engine() -> None:
    engines = [Engine(60), Engine(0.01, fails_at=2)]
    with pytest.raises(RlhfError, match="out of memory"):
        await gathered(group_of(engines, shard_size=2), requests(8))
    await asyncio.sleep(0.01)
    assert engines[0].cancelled == 2
    assert all(task is asyncio.current_task() for task in asyncio.all_tasks())


async def test_nothing_to_sample_gives_nothing() -> None:
    assert await gathered(group_of([Engine()], shard_size=2), []) == []


# -------------------------------------------------------------------------------------------------------------- trainer
class Rank:
    """Notes every call."""

    def __init__(self, number: int, calls: list[tuple[Any, ...]]) -> None:
        self.number, self.calls = number, calls

    def free_address(self) -> str:
        return f"10.0.0.{self.number}:400{self.number}"

    def build(self, spec: Any, info: RankInfo) -> None:
        self.calls.append(("build", spec, info.rank, info.world_size, info.address, info.device))

    def update(self, work: Any, *blocks: Any) -> MetricSums:
        self.calls.append(("update", self.number, work, blocks))
        sums = MetricSums()
        sums.add("loss", total=10.0 * (self.number + 1), weight=1 + 3 * self.number)
        sums.add("ppo/rollout_weight_mean", total=4.0, weight=4)
        sums.add("ppo/rollout_weights_squared", total=8.0, weight=4)
        return sums

    def score(self, work: Any) -> list[tuple[int, tuple[float, ...]]]:
        return [(index, (float(index), 0.5)) for index in work]

    def probe(self, token_ids: list[int]) -> list[float]:
        return [-float(self.number)] * len(token_ids)


def trainer_of(num_ranks: int) -> tuple[TrainerGroup, list[tuple[Any, ...]]]:
    calls: list[tuple[Any, ...]] = []
    ranks = [FakeHandle(Rank(number, calls)) for number in range(num_ranks)]
    return TrainerGroup(ranks, TrainingConfig(num_ranks=num_ranks), device="cpu", timeout_s=5), calls


async def test_all_ranks_join_at_the_address_of_the_first() -> None:
    group, calls = trainer_of(2)
    await group.start("spec")
    assert calls == [("build", "spec", 0, 2, "10.0.0.0:4000", "cpu"), ("build", "spec", 1, 2, "10.0.0.0:4000", "cpu")]


async def test_a_mean_over_ranks_weighs_each_item_once() -> None:
    group, calls = trainer_of(2)
    sums = await group.update(["work 0", "work 1"])
    assert sums.means()["loss"] == pytest.approx((10.0 + 20.0) / (1 + 4))
    assert [call[1:3] for call in calls] == [(0, "work 0"), (1, "work 1")]


async def test_a_work_list_must_have_one_element_a_rank() -> None:
    with pytest.raises(ValueError, match="zip"):
        await trainer_of(2)[0].update(["work 0"])


async def test_scores_of_all_ranks_come_back_by_index() -> None:
    assert await trainer_of(2)[0].score([[0, 2], [1]]) == {0: (0.0, 0.5), 2: (2.0, 0.5), 1: (1.0, 0.5)}


async def test_the_probe_is_answered_by_the_first_rank_and_run_by_all() -> None:
    assert await trainer_of(3)[0].probe([1, 2]) == [0.0, 0.0]


# ------------------------------------------------------------------------------------------------------------------ PPO
def scored(first: int, count: int) -> ScoredShard:
    orders = range(first, first + count)
    summaries = tuple(summary(order) for order in orders)
    return ScoredShard(summaries, f"rollouts {first}", f"ref {first}", tuple(Score(order / 8) for order in orders))


async def ppo_calls(shards: Sequence[ScoredShard], num_ranks: int) -> list[tuple[Any, ...]]:
    group, calls = trainer_of(num_ranks)
    config = PpoConfig(rollouts_per_step=8, num_minibatches=2)
    await PpoTrainerGroup(group, config, seed=0, demonstrations=lambda step: ()).update(
        step=1, shards=shards, kl_coef=0.1, baselines={}
    )
    return calls


@pytest.mark.parametrize("num_ranks", [1, 2])
async def test_what_the_ranks_are_given_does_not_depend_on_the_order_of_arrival(num_ranks: int) -> None:
    shards = [scored(0, 3), scored(3, 3), scored(6, 2)]
    expected = await ppo_calls(shards, num_ranks)
    assert await ppo_calls([shards[2], shards[0], shards[1]], num_ranks) == expected


async def test_a_rank_is_sent_the_shards_that_hold_its_rollouts_and_their_scores() -> None:
    shards = [scored(order, 1) for order in range(8)]
    calls = await ppo_calls(shards, 2)
    owned = [set(work.scores) for _, _, work, _ in calls]
    assert owned[0] | owned[1] == set(range(8))
    assert not owned[0] & owned[1]
    for (_, _, work, blocks), orders in zip(calls, owned, strict=True):
        assert blocks == tuple(ref for order in sorted(orders) for ref in (f"rollouts {order}", f"ref {order}"))
        assert work.scores == {order: order / 8 for order in orders}


# -------------------------------------------------------------------------------------------------------------- servers
class Server:
    def __init__(self, number: int) -> None:
        self.number = number

    def grade(self, rollouts: str) -> tuple[Graded, ...]:
        if rollouts == "broken":
            raise RlhfError("a NaN score")
        return (Graded(float(self.number)),)

    def logprobs(self, rollouts: str) -> tuple[str, int]:
        return f"{self.number} {rollouts}", 1


def source_of(*servers: Any) -> RewardSourceGroup:
    return RewardSourceGroup(replicas_of(*servers))


async def test_replicas_take_turns() -> None:
    servers = [Server(number) for number in range(3)]
    rewards, references = source_of(*servers), ReferenceGroup(replicas_of(*servers))
    shard = RolloutShard((summary(0),), "block")
    scores = [(await rewards.grade(shard))[0].score for _ in range(6)]
    assert {*scores[:3]} == {*scores[3:]} == {0.0, 1.0, 2.0}
    assert len({await (await references.logprobs(shard)) for _ in range(3)}) == 3


class Waiting:
    """Answers when ``other`` has been asked too; alone it would wait for ever."""

    def __init__(self, answer: Graded) -> None:
        self.answer, self.asked = answer, asyncio.Event()
        self.other = self

    async def grade(self, rollouts: str) -> tuple[Graded, ...]:
        self.asked.set()
        await self.other.asked.wait()
        return (self.answer,)


async def test_all_sources_are_asked_at_once_and_their_scores_are_summed_by_weight() -> None:
    first, second = Waiting(Graded(2.0, ((0, 1.0),))), Waiting(Graded(0.5))
    first.other, second.other = second, first
    rewards = CombinedRewards({"a": source_of(first), "b": source_of(second)}, weights={"a": 0.5, "b": -2.0})
    (score,) = await rewards.score(RolloutShard((summary(0),), "block"))
    assert score == Score(0.0, {"a": 2.0, "b": 0.5}, step_rewards=((0, 0.5),))


async def test_a_step_reward_beyond_the_response_is_a_failure_of_its_source() -> None:
    length = summary(0).response_length
    rewards = CombinedRewards({"a": source_of(Waiting(Graded(1.0, ((length, 1.0),))))}, weights={"a": 1.0})
    (score,) = await rewards.score(RolloutShard((summary(0),), "block"))
    assert score.failed == f"a: a step reward stands at token {length} of a response of {length}"


async def test_a_source_that_fails_is_heard_and_the_others_are_not_waited_for() -> None:
    never = Waiting(Graded(1.0))
    never.other = Waiting(Graded(1.0))
    rewards = CombinedRewards({"a": source_of(never), "b": source_of(Server(0))}, weights={"a": 1.0, "b": 1.0})
    with pytest.raises(RlhfError, match="a NaN score"):
        await rewards.score(RolloutShard((summary(0),), "broken"))
