"""Plans as partitions: nothing lost, ranks even, little padding."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.data.batching import (
    MICRO_BATCH_TOKENS,
    UpdatePlan,
    pack_micro_batches,
    pack_shares,
    padding_fraction,
    plan_minibatches,
)
from rlhf_ray.data.partition import DIFFERENCED, balanced_partition
from rlhf_ray.errors import ConfigError
from tests.data.reference import least_cut, plain_partition

token_counts = st.lists(st.integers(1, 500), min_size=1, max_size=40)


def realistic_lengths(count: int, seed: int) -> list[int]:
    """Prompts of 32 to 256 tokens, log-normal responses with a median of 250 that are cut at 1024."""
    source = random.Random(seed)
    responses = (source.lognormvariate(math.log(250), 0.6) for _ in range(count))
    return [source.randint(32, 256) + min(1024, max(1, int(response))) for response in responses]


def micro_batches_of(plan: UpdatePlan) -> list[tuple[int, ...]]:
    return [rows for minibatch in plan.minibatches for rank in minibatch.ranks for rows in rank.micro_batches]


# ------------------------------------------------------------------------------------------------------ balanced shares
@settings(deadline=None, max_examples=150)
@given(lengths=token_counts, num_parts=st.integers(1, 9), equal_counts=st.booleans())
def test_shares_hold_every_index_once_and_differ_by_at_most_the_longest_length(
    lengths: list[int], num_parts: int, equal_counts: bool
) -> None:
    shares = balanced_partition(lengths, num_parts, equal_counts=equal_counts)
    assert len(shares) == num_parts
    assert sorted(itertools.chain(*shares)) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in share) for share in shares]
    assert max(sums) - min(sums) <= max(lengths)
    if equal_counts:
        counts = [len(share) for share in shares]
        assert max(counts) - min(counts) <= 1


def test_largest_differencing_of_the_textbook_example() -> None:
    # 8, 7, 6, 5, 4 in two: differences 8-7, 6-5, then 4-1, 3-1 leave 2, as {8, 6} and {7, 5, 4}.
    shares = balanced_partition([8, 7, 6, 5, 4], 2, equal_counts=False)
    assert sorted(sum([8, 7, 6, 5, 4][index] for index in share) for share in shares) == [14, 16]


def test_shares_of_a_realistic_step_differ_by_less_than_a_thousandth() -> None:
    lengths = realistic_lengths(256, seed=0)
    for equal_counts in (False, True):
        sums = [sum(lengths[i] for i in share) for share in balanced_partition(lengths, 8, equal_counts=equal_counts)]
        assert max(sums) / (sum(sums) / 8) < 1.001


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.integers(0, 9) | st.integers(1, 500), max_size=40),
    num_parts=st.integers(1, 9),
    equal_counts=st.booleans(),
)
def test_shares_are_those_that_joining_step_by_step_makes(
    lengths: list[int], num_parts: int, equal_counts: bool
) -> None:
    shares = balanced_partition(lengths, num_parts, equal_counts=equal_counts)
    assert shares == plain_partition(lengths, num_parts, equal_counts=equal_counts)


@pytest.mark.parametrize(("num_parts", "num_rows"), [(2, 128), (8, 500), (64, 1500)])
def test_shares_of_many_rows_are_those_that_joining_step_by_step_makes(num_parts: int, num_rows: int) -> None:
    lengths = realistic_lengths(num_rows, seed=4)
    assert balanced_partition(lengths, num_parts, False) == plain_partition(lengths, num_parts, False)


@pytest.mark.parametrize("num_parts", [2, 8, 64])
@pytest.mark.parametrize("shortest", [0, 1])
def test_shares_of_very_many_rows_are_as_even(num_parts: int, shortest: int) -> None:
    lengths = [shortest, *realistic_lengths(3 * DIFFERENCED * num_parts, seed=5), shortest]
    shares = balanced_partition(lengths, num_parts, False)
    assert sorted(itertools.chain(*shares)) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in share) for share in shares]
    assert max(sums) - min(sums) <= 2
    assert shares == balanced_partition(list(lengths), num_parts, False)


def test_no_rows_make_empty_shares() -> None:
    assert balanced_partition([], 3, equal_counts=True) == ((), (), ())


# -------------------------------------------------------------------------------------------------------- micro-batches
@settings(deadline=None, max_examples=150)
@given(lengths=token_counts, max_tokens=st.integers(1, 2000))
def test_micro_batches_hold_every_row_once_within_the_limit_and_sorted_by_length(
    lengths: list[int], max_tokens: int
) -> None:
    micro_batches = pack_micro_batches(lengths, max_tokens)
    placed = list(itertools.chain(*micro_batches))
    assert sorted(placed) == list(range(len(lengths)))
    assert [lengths[row] for row in placed] == sorted(lengths, reverse=True)
    for rows in micro_batches:
        assert len(rows) == 1 or max(lengths[row] for row in rows) * len(rows) <= max_tokens


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=8), max_tokens=st.integers(500, 2000))
def test_no_cut_of_the_sorted_rows_costs_less(lengths: list[int], max_tokens: int) -> None:
    by_length = sorted(lengths, reverse=True)

    def cost(ends: tuple[int, ...]) -> float:
        parts = [by_length[start:end] for start, end in itertools.pairwise((0, *ends, len(by_length)))]
        padded = [part[0] * len(part) for part in parts]
        return sum(padded) + MICRO_BATCH_TOKENS * len(parts) if max(padded) <= max_tokens else math.inf

    places = range(1, len(by_length))
    every_cut = itertools.chain.from_iterable(itertools.combinations(places, count) for count in range(len(by_length)))
    chosen = pack_micro_batches(lengths, max_tokens)
    assert cost(tuple(itertools.accumulate(map(len, chosen)))[:-1]) == min(map(cost, every_cut))


many_shares = st.lists(st.lists(st.integers(0, 9) | st.integers(1, 500), max_size=40), min_size=1, max_size=6)


@settings(deadline=None, max_examples=150)
@given(shares=many_shares, max_tokens=st.integers(1, 60) | st.integers(500, 50000))
def test_shares_packed_at_once_are_cut_as_each_is_by_looking_at_every_end(
    shares: list[list[int]], max_tokens: int
) -> None:
    assert pack_shares(shares, max_tokens) == [least_cut(share, max_tokens) for share in shares]


def test_a_row_longer_than_the_limit_gets_a_micro_batch_of_its_own() -> None:
    assert pack_micro_batches([10, 300, 10], 100) == ((1,), (0, 2))


def test_padding_fraction_by_hand() -> None:
    # (4 + 2) of 8 tokens and 3 of 3: two of eleven are padding.
    assert padding_fraction([4, 2, 3], [(0, 1), (2,), ()]) == pytest.approx(2 / 11)
    assert padding_fraction([], [()]) == 0.0


@pytest.mark.parametrize("max_tokens", [4096, 16384])
@pytest.mark.parametrize(("rollouts", "num_ranks"), [(256, 4), (512, 8), (1024, 8), (1024, 1)])
def test_under_a_tenth_of_a_realistic_step_is_padding(rollouts: int, num_ranks: int, max_tokens: int) -> None:
    lengths = realistic_lengths(rollouts, seed=1)
    plan = plan_minibatches(lengths=lengths, num_minibatches=4, num_ranks=num_ranks, max_tokens=max_tokens, seed=0)
    assert padding_fraction(lengths, micro_batches_of(plan)) < 0.10  # measured: 0.03 to 0.09


# ---------------------------------------------------------------------------------------------------------- whole plans
@settings(deadline=None, max_examples=150)
@given(
    lengths=token_counts,
    minibatch_share=st.floats(0.01, 1.0),
    num_ranks=st.integers(1, 9),
    max_tokens=st.integers(100, 3000),
    seed=st.integers(0, 100),
)
def test_a_plan_holds_every_row_once_and_gives_every_rank_as_many_micro_batches(
    lengths: list[int], minibatch_share: float, num_ranks: int, max_tokens: int, seed: int
) -> None:
    num_minibatches = max(1, int(minibatch_share * len(lengths)))
    plan = plan_minibatches(
        lengths=lengths, num_minibatches=num_minibatches, num_ranks=num_ranks, max_tokens=max_tokens, seed=seed
    )
    assert len(plan.minibatches) == num_minibatches
    assert sorted(itertools.chain(*micro_batches_of(plan))) == list(range(len(lengths)))
    for minibatch in plan.minibatches:
        assert len(minibatch.ranks) == num_ranks
        assert len({len(rank.micro_batches) for rank in minibatch.ranks}) == 1
    sizes = [len(minibatch.rows) for minibatch in plan.minibatches]
    assert max(sizes) - min(sizes) <= 1
    for rows in micro_batches_of(plan):
        assert len(rows) <= 1 or max(lengths[row] for row in rows) * len(rows) <= max_tokens


def test_the_rows_of_a_minibatch_do_not_depend_on_the_number_of_ranks() -> None:
    lengths = realistic_lengths(96, seed=2)
    rows_by_ranks = [
        [
            minibatch.rows
            for minibatch in plan_minibatches(
                lengths=lengths, num_minibatches=4, num_ranks=num_ranks, max_tokens=4096, seed=7
            ).minibatches
        ]
        for num_ranks in (1, 2, 3, 8, 40)
    ]
    assert all(rows == rows_by_ranks[0] for rows in rows_by_ranks)


def test_the_seed_alone_draws_the_minibatches() -> None:
    arguments = {"num_minibatches": 2, "num_ranks": 2, "max_tokens": 4096}
    lengths = realistic_lengths(32, seed=3)
    plans = [plan_minibatches(lengths=lengths, seed=seed, **arguments) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_ranks_without_rows_get_empty_micro_batches() -> None:
    plan = plan_minibatches(lengths=[5, 7], num_minibatches=1, num_ranks=4, max_tokens=100, seed=0)
    micro_batches = sorted(rank.micro_batches for rank in plan.minibatches[0].ranks)
    assert micro_batches == [((),), ((),), ((0,),), ((1,),)]


def test_a_rank_with_fewer_micro_batches_splits_its_own_rather_than_idle() -> None:
    # One rank gets the long row and needs one micro-batch for it; the other splits twenty short rows.
    plan = plan_minibatches(lengths=[1000] + [50] * 20, num_minibatches=1, num_ranks=2, max_tokens=500, seed=0)
    sizes = [[len(rows) for rows in rank.micro_batches] for rank in plan.minibatches[0].ranks]
    assert sorted(sizes) == [[1, 0], [10, 10]]
    plan = plan_minibatches(lengths=[400, 400] + [50] * 16, num_minibatches=1, num_ranks=2, max_tokens=800, seed=0)
    assert {len(rank.micro_batches) for rank in plan.minibatches[0].ranks} == {2}
    assert () not in micro_batches_of(plan)


@pytest.mark.parametrize(
    ("field", "value"), [("num_minibatches", 0), ("num_minibatches", 4), ("num_ranks", 0), ("max_tokens", 0)]
)
def test_settings_out_of_range_are_errors_that_name_the_field(field: str, value: int) -> None:
    arguments = {"num_minibatches": 1, "num_ranks": 1, "max_tokens": 10, "seed": 0} | {field: value}
    with pytest.raises(ConfigError, match=rf"{field} \({value}\)"):
        plan_minibatches(lengths=[3, 3, 3], **arguments)
