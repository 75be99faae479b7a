"""Generalised advantage estimation against plain loops over Python floats."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algo.advantages import gae


def gae_by_definition(
    rewards: list[float], values: list[float], sampled: list[bool], gamma: float, lam: float
) -> list[float]:
    """Sum (gamma lam)^l delta_{t+l} over the sampled tokens of one row, with no recursion."""
    at = [t for t, is_sampled in enumerate(sampled) if is_sampled]
    state_values = [values[t] for t in at] + [0.0]
    deltas = [rewards[t] + gamma * state_values[i + 1] - state_values[i] for i, t in enumerate(at)]
    advantages = [0.0] * len(rewards)
    for i, t in enumerate(at):
        advantages[t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(at)))
    return advantages


def random_rows(rows: int, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    values = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    return rewards, values, torch.rand(rows, length, generator=generator) < 0.6


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


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    gamma=st.sampled_from([0.0, 0.9, 0.99, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_gae_equals_its_definition_for_any_mask_gamma_and_lambda(
    length: int, seed: int, gamma: float, lam: float
) -> None:
    rewards, values, mask = random_rows(3, length, seed)
    advantages, returns = gae(rewards=rewards, values=values, response_mask=mask, gamma=gamma, lam=lam)
    expected = torch.tensor(
        [
            gae_by_definition(*row, gamma, lam)
            for row in zip(rewards.tolist(), values.tolist(), mask.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(advantages, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0.0), rtol=1e-9, atol=1e-9)


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
    rewards, values, _ = random_rows(2, 9, seed=3)
    _, returns = gae(
        rewards=rewards, values=values, response_mask=torch.ones(2, 9, dtype=torch.bool), gamma=0.5, lam=1.0
    )
    discounts = 0.5 ** torch.arange(9, dtype=torch.float64)
    torch.testing.assert_close(returns[:, 0], (rewards * discounts).sum(-1))


def test_gae_does_not_change_a_bit_under_padding_even_where_it_is_not_a_number() -> None:
    rewards, values, mask = random_rows(3, 11, seed=5)
    padding = torch.full((3, 6), torch.nan, dtype=torch.float64)
    plain = gae(rewards=rewards, values=values, response_mask=mask, gamma=0.99, lam=0.95)
    padded = gae(
        rewards=torch.cat([rewards, padding], -1),
        values=torch.cat([values, padding], -1),
        response_mask=torch.cat([mask, torch.zeros(3, 6, dtype=torch.bool)], -1),
        gamma=0.99,
        lam=0.95,
    )
    for short, long in zip(plain, padded, strict=True):
        assert torch.equal(short, long[:, :11])
        assert not long[:, 11:].any()


def test_gae_of_an_empty_response_is_zero() -> None:
    rewards, values, _ = random_rows(1, 4, seed=1)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    for result in gae(rewards=rewards, values=values, response_mask=nothing, gamma=1.0, lam=0.95):
        assert result.tolist() == [[0.0] * 4]


def test_gae_rejects_a_discount_above_one() -> None:
    ones = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"gamma \(1.5\)"):
        gae(rewards=ones, values=ones, response_mask=ones.bool(), gamma=1.5, lam=1.0)
