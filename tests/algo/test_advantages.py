"""Advantages against plain loops over Python floats."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algo.advantages import (
    GroupEstimator,
    discounted_returns,
    gae,
    group_advantages,
    group_centred,
    has_signal,
    per_token,
)
from tests.algo import reference
from tests.algo.ragged import EXAMPLES, masks, numbers, placed, rows, rubbish, seeds, widened

FORMULAS = {"grpo": reference.grpo, "dr_grpo": reference.dr_grpo, "rloo": reference.rloo, "opo": reference.opo}
ESTIMATORS = [cast(GroupEstimator, name) for name in FORMULAS]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
discounts = st.sampled_from([0.0, 0.5, 0.95, 1.0])


@st.composite
def responses(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Totals, groups and lengths of up to 12 responses: few distinct values, so that groups are often all alike."""
    size = draw(st.integers(1, 12))
    values = st.sampled_from([0.0, 1.0, 0.1, -2.5, 1 / 3])
    totals = draw(st.lists(values, min_size=size, max_size=size))
    groups = draw(st.lists(st.sampled_from([7, -3, 40]), min_size=size, max_size=size))
    lengths = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    return torch.tensor(totals, dtype=torch.float64), torch.tensor(groups), torch.tensor(lengths)


# ------------------------------------------------------------------------------------------------------------------ gae
def test_gae_of_two_tokens_by_hand() -> None:
    # delta_1 = 1 - 0.5 = 0.5; delta_0 = 0 + 0.9 * 0.5 - 0.2 = 0.25; A_0 = 0.25 + 0.9 * 0.8 * 0.5 = 0.61
    advantages, returns = gae(
        rewards=torch.tensor([[0.0, 1.0]]),
        values=torch.tensor([[0.2, 0.5]]),
        response_mask=torch.tensor([[True, True]]),
        gamma=0.9,
        lam=0.8,
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.61, 0.5]]))
    torch.testing.assert_close(returns, torch.tensor([[0.81, 1.0]]))


@EXAMPLES
@given(mask=masks(max_length=20), seed=seeds, outside=rubbish, gamma=discounts, lam=discounts)
def test_gae_equals_its_definition_on_the_sampled_tokens_whatever_stands_outside(
    mask: Tensor, seed: int, outside: float, gamma: float, lam: float
) -> None:
    rewards, values = numbers(mask, seed, names=2, outside=outside)
    expected = [reference.gae(r, v, gamma, lam) for r, v in zip(rows(rewards, mask), rows(values, mask), strict=True)]
    found = gae(rewards=rewards, values=values, response_mask=mask, gamma=gamma, lam=lam)
    for result, lists in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(result, placed(lists, mask), rtol=1e-9, atol=1e-9)


def test_gae_skips_tokens_the_policy_did_not_sample() -> None:
    gapped = gae(
        rewards=torch.tensor([[9.0, 0.1, 9.0, 9.0, 0.2, 0.3, 9.0]]),
        values=torch.tensor([[9.0, 1.0, 9.0, 9.0, 2.0, 3.0, 9.0]]),
        response_mask=torch.tensor([[False, True, False, False, True, True, False]]),
        gamma=0.9,
        lam=0.7,
    )
    dense = gae(
        rewards=torch.tensor([[0.1, 0.2, 0.3]]),
        values=torch.tensor([[1.0, 2.0, 3.0]]),
        response_mask=torch.ones(1, 3, dtype=torch.bool),
        gamma=0.9,
        lam=0.7,
    )
    for with_gaps, without in zip(gapped, dense, strict=True):
        torch.testing.assert_close(with_gaps[:, [1, 4, 5]], without)
        assert with_gaps[:, [0, 2, 3, 6]].tolist() == [[0.0] * 4]


def test_gae_with_lambda_one_is_the_discounted_return_minus_the_value() -> None:
    mask = torch.ones(2, 9, dtype=torch.bool)
    rewards, values = numbers(mask, 3, names=2)
    _, returns = gae(rewards=rewards, values=values, response_mask=mask, gamma=0.5, lam=1.0)
    torch.testing.assert_close(returns, discounted_returns(rewards=rewards, response_mask=mask, gamma=0.5))


@EXAMPLES
@given(mask=masks(max_length=12), seed=seeds, columns=st.integers(1, 9))
def test_gae_and_returns_do_not_change_a_bit_under_padding(mask: Tensor, seed: int, columns: int) -> None:
    rewards, values = numbers(mask, seed, names=2)
    wide_rewards, wide_values, wide_mask = (widened(tensor, columns) for tensor in (rewards, values, mask))
    plain = gae(rewards=rewards, values=values, response_mask=mask, gamma=0.99, lam=0.95)
    padded = gae(rewards=wide_rewards, values=wide_values, response_mask=wide_mask, gamma=0.99, lam=0.95)
    plain += (discounted_returns(rewards=rewards, response_mask=mask, gamma=0.9),)
    padded += (discounted_returns(rewards=wide_rewards, response_mask=wide_mask, gamma=0.9),)
    for short, long in zip(plain, padded, strict=True):
        assert torch.equal(short, long[:, : mask.shape[1]])
        assert not long[:, mask.shape[1] :].any()


def test_a_discount_above_one_is_an_error() -> None:
    ones = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"gamma \(1.5\)"):
        gae(rewards=ones, values=ones, response_mask=ones.bool(), gamma=1.5, lam=1.0)
    with pytest.raises(ValueError, match=r"gamma \(1.5\)"):
        discounted_returns(rewards=ones, response_mask=ones.bool(), gamma=1.5)


# --------------------------------------------------------------------------------------------------------- reward-to-go
def test_returns_of_three_tokens_by_hand() -> None:
    # G_2 = 4, G_1 = 2 + 0.5 * 4 = 4, G_0 = 1 + 0.5 * 4 = 3; the tool's output between them takes no time.
    returns = discounted_returns(
        rewards=torch.tensor([[1.0, 9.0, 2.0, 4.0]]),
        response_mask=torch.tensor([[True, False, True, True]]),
        gamma=0.5,
    )
    assert returns.tolist() == [[3.0, 0.0, 4.0, 4.0]]


@EXAMPLES
@given(mask=masks(max_length=20), seed=seeds, outside=rubbish, gamma=discounts)
def test_returns_equal_their_definition_on_the_sampled_tokens_whatever_stands_outside(
    mask: Tensor, seed: int, outside: float, gamma: float
) -> None:
    (rewards,) = numbers(mask, seed, outside=outside)
    expected = [reference.discounted_returns(row, gamma) for row in rows(rewards, mask)]
    found = discounted_returns(rewards=rewards, response_mask=mask, gamma=gamma)
    torch.testing.assert_close(found, placed(expected, mask), rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------------------------------------------- groups
@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("grpo", [-1 / (1 + 1e-6), 0.0, 1 / (1 + 1e-6)]),  # the unbiased standard deviation of 1, 2, 3 is 1
        ("dr_grpo", [-1.0, 0.0, 1.0]),
        ("rloo", [-1.5, 0.0, 1.5]),  # 1 - (2 + 3) / 2
        ("opo", [-0.5, 0.5, 1.5]),  # the baseline is (6 * 1 + 3 * 2 + 1 * 3) / 10 = 1.5
    ],
)
def test_advantages_of_three_responses_by_hand(estimator: GroupEstimator, expected: list[float]) -> None:
    advantages = group_advantages(
        totals=torch.tensor([1.0, 2.0, 3.0]),
        groups=torch.tensor([5, 5, 5]),
        estimator=estimator,
        lengths=torch.tensor([6, 3, 1]),
    )
    assert advantages.dtype is torch.float64
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


@every_estimator
@EXAMPLES
@given(batch=responses())
def test_group_advantages_equal_the_formula_applied_to_each_group(
    estimator: GroupEstimator, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    totals, groups, lengths = batch
    expected = reference.by_group(totals.tolist(), groups.tolist(), lengths.tolist(), FORMULAS[estimator])
    found = group_advantages(totals=totals, groups=groups, estimator=estimator, lengths=lengths)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@every_estimator
@EXAMPLES
@given(seed=seeds, size=st.integers(1, 40))
def test_neither_the_order_of_rows_nor_other_groups_change_a_bit(
    estimator: GroupEstimator, seed: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    totals = torch.randn(size, generator=generator) * 1e3
    groups = torch.randint(0, 4, (size,), generator=generator)
    lengths = torch.randint(0, 100, (size,), generator=generator)
    order = torch.randperm(size, generator=generator)
    plain = group_advantages(totals=totals, groups=groups, estimator=estimator, lengths=lengths)
    mixed = group_advantages(totals=totals[order], groups=groups[order], estimator=estimator, lengths=lengths[order])
    assert torch.equal(mixed, plain[order])
    own = groups == groups[0]
    alone = group_advantages(totals=totals[own], groups=groups[own], estimator=estimator, lengths=lengths[own])
    assert torch.equal(alone, plain[own])


@every_estimator
@EXAMPLES
@given(batch=responses(), shift=st.floats(-100, 100), factor=st.floats(0.5, 50))
def test_advantages_ignore_a_shift_of_all_totals_and_follow_their_scale(
    estimator: GroupEstimator, batch: tuple[Tensor, Tensor, Tensor], shift: float, factor: float
) -> None:
    totals, groups, lengths = batch
    plain = group_advantages(totals=totals, groups=groups, estimator=estimator, lengths=lengths)
    moved = group_advantages(totals=totals + shift, groups=groups, estimator=estimator, lengths=lengths)
    scaled = group_advantages(totals=totals * factor, groups=groups, estimator=estimator, lengths=lengths)
    torch.testing.assert_close(moved, plain, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(scaled, plain if estimator == "grpo" else plain * factor, rtol=1e-4, atol=1e-9)


@every_estimator
@pytest.mark.parametrize("total", [0.1, -1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("size", [1, 3, 6, 7, 49])
def test_equal_totals_and_a_group_of_one_have_exactly_no_advantage(
    estimator: GroupEstimator, total: float, size: int
) -> None:
    groups = torch.zeros(size, dtype=torch.long)
    totals = torch.full((size,), total, dtype=torch.float64)
    lengths = torch.arange(1, size + 1)
    assert not group_advantages(totals=totals, groups=groups, estimator=estimator, lengths=lengths).any()
    assert not has_signal(totals=totals, groups=groups).any()


def test_the_optimal_baseline_of_empty_responses_is_their_mean() -> None:
    advantages = group_advantages(
        totals=torch.tensor([1.0, 3.0]), groups=torch.zeros(2).long(), estimator="opo", lengths=torch.tensor([0, 0])
    )
    assert advantages.tolist() == [-1.0, 1.0]


@every_estimator
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_total_that_is_not_finite_spoils_its_own_group_and_is_not_filtered_away(
    estimator: GroupEstimator, bad: float
) -> None:
    groups = torch.tensor([0, 0, 1, 1, 2])
    totals = torch.tensor([1.0, bad, 1.0, 2.0, bad])
    advantages = group_advantages(totals=totals, groups=groups, estimator=estimator, lengths=torch.ones(5).long())
    assert advantages.isnan().tolist() == [True, True, False, False, True]
    assert has_signal(totals=totals, groups=groups).all()


def test_no_responses_have_no_advantages() -> None:
    nothing, none = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    for estimator in ESTIMATORS:
        assert group_advantages(totals=nothing, groups=none, estimator=estimator, lengths=none).shape == (0,)
    assert has_signal(totals=nothing, groups=none).shape == (0,)


@EXAMPLES
@given(batch=responses())
def test_signal_is_where_the_totals_of_a_group_differ_and_centred_totals_add_up_to_zero(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    totals, groups, _ = batch
    seen: dict[int, set[float]] = {}
    for group, total in zip(groups.tolist(), totals.tolist(), strict=True):
        seen.setdefault(group, set()).add(total)
    assert has_signal(totals=totals, groups=groups).tolist() == [len(seen[g]) > 1 for g in groups.tolist()]
    centred = group_centred(totals=totals, groups=groups)
    expected = reference.by_group(totals.tolist(), groups.tolist(), totals.tolist(), reference.dr_grpo)
    assert centred.tolist() == pytest.approx(expected, abs=1e-12)


def test_rows_that_do_not_match_and_unknown_estimators_are_errors() -> None:
    totals, groups = torch.zeros(3), torch.zeros(3).long()
    with pytest.raises(ValueError, match=r"groups \(2,\)"):
        has_signal(totals=totals, groups=groups[:2])
    with pytest.raises(ValueError, match=r"lengths \(1,\)"):
        group_advantages(totals=totals, groups=groups, estimator="opo", lengths=groups[:1])
    with pytest.raises(ValueError, match=r"estimator \('gae'\)"):
        group_advantages(totals=totals, groups=groups, estimator=cast(GroupEstimator, "gae"), lengths=groups)


@EXAMPLES
@given(mask=masks(), seed=seeds)
def test_a_response_s_advantage_stands_at_each_of_its_sampled_tokens(mask: Tensor, seed: int) -> None:
    (advantages,) = numbers(torch.ones(len(mask), dtype=torch.bool), seed)
    expected = [[a] * int(n) for a, n in zip(advantages.tolist(), mask.sum(-1).tolist(), strict=True)]
    assert torch.equal(per_token(advantages=advantages, response_mask=mask), placed(expected, mask))
