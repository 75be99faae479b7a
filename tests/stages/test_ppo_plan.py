"""A PPO step's plan: every rollout once an epoch, the same minibatches for any number of ranks."""

from __future__ import annotations

from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.records import RolloutSummary
from rlhf_ray.stages.ppo_plan import PpoWork, plan_ppo
from rlhf_ray.stages.work import SequenceWork
from tests import tiny

CONFIG = PpoConfig(num_steps=5, rollouts_per_step=12, num_epochs=3, num_minibatches=4, critic_warmup_steps=2)
SUMMARIES = [r.summary for r in tiny.rollouts(12)]


def planned(num_ranks: int, *, step: int = 3, max_tokens: int = 24, **changes: object) -> tuple[PpoWork, ...]:
    arguments: dict[str, object] = {
        "summaries": SUMMARIES,
        "scores": [0.5 * s.order for s in SUMMARIES],
        "config": CONFIG,
        "max_tokens": max_tokens,
        "kl_coef": 0.05,
        "seed": 11,
    }
    return plan_ppo(**(arguments | {"num_ranks": num_ranks, "step": step} | changes))  # type: ignore[arg-type]


def rows_of(works: tuple[PpoWork, ...], minibatch: int) -> list[int]:
    return sorted(order for work in works for micro in work.minibatches[minibatch].micro_batches for order in micro)


def test_every_rollout_stands_in_exactly_one_minibatch() -> None:
    works = planned(2)
    assert sorted(order for m in range(4) for order in rows_of(works, m)) == list(range(12))
    assert [len(rows_of(works, m)) for m in range(4)] == [3, 3, 3, 3]


def test_the_minibatches_do_not_depend_on_the_number_of_ranks() -> None:
    one, three = planned(1), planned(3)
    for m in range(4):
        assert rows_of(one, m) == rows_of(three, m)
        assert one[0].minibatches[m].num_tokens == three[2].minibatches[m].num_tokens
    assert one[0].epochs == three[0].epochs == three[1].epochs


def test_a_minibatch_counts_the_sampled_tokens_of_all_ranks() -> None:
    works = planned(2)
    for m in range(4):
        assert works[0].minibatches[m].num_tokens == sum(SUMMARIES[i].response_length for i in rows_of(works, m))


def test_ranks_have_equally_many_micro_batches_and_some_are_empty() -> None:
    works = planned(2, max_tokens=1)  # one row a micro-batch, and three rows for two ranks
    counts = [[len(m.micro_batches) for m in work.minibatches] for work in works]
    assert counts[0] == counts[1]
    assert sum(not micro for work in works for m in work.minibatches for micro in m.micro_batches) == 4


def test_each_rank_knows_the_scores_of_its_own_rollouts_only() -> None:
    works = planned(2)
    assert set(works[0].scores) | set(works[1].scores) == set(range(12))
    assert not set(works[0].scores) & set(works[1].scores)
    assert works[0].scores == {order: 0.5 * order for order in works[0].scores}


def test_rows_are_named_by_their_order_and_not_by_their_place() -> None:
    moved = [
        RolloutSummary(s.rollout_id, s.prompt_id, s.order + 100, s.prompt_length, s.response_length, "stop", 0)
        for s in SUMMARIES
    ]
    works = planned(1, summaries=moved)
    assert rows_of(works, 0) == [order + 100 for order in rows_of(planned(1), 0)]
    assert works[0].scores[105] == 0.5 * 5


def test_epochs_are_permutations_that_differ_from_step_to_step() -> None:
    third, fourth = planned(1)[0], planned(1, step=4)[0]
    assert [sorted(epoch) for epoch in third.epochs] == [[0, 1, 2, 3]] * 3
    assert third.epochs == planned(1)[0].epochs
    assert third.epochs != fourth.epochs


def test_the_policy_rests_while_the_critic_warms_up() -> None:
    assert [planned(1, step=step)[0].train_policy for step in (1, 2, 3)] == [False, False, True]


def test_demonstrations_go_to_their_minibatch_and_rank() -> None:
    ptx = [[SequenceWork((), 10 * m + rank) for rank in range(2)] for m in range(4)]
    works = planned(2, ptx=ptx)
    named = [[m.ptx.num_tokens if m.ptx else None for m in work.minibatches] for work in works]
    assert named == [[0, 10, 20, 30], [1, 11, 21, 31]]
