"""Per-token rewards against hand computations and a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algo.kl import KLEstimator
from rlhf_ray.algo.masked import mean_and_variance, moments
from rlhf_ray.algo.rewards import (
    clip_scores,
    last_token_mask,
    overlong_penalty,
    penalise_missing_eos,
    shape_rewards,
    whiten_rewards,
)
from tests.algo import reference
from tests.algo.ragged import EXAMPLES, masks, numbers, placed, rows, rubbish, seeds


def test_rewards_of_one_response_by_hand() -> None:
    rewards = shape_rewards(
        scores=torch.tensor([2.0]),
        logprobs=torch.tensor([[9.0, -1.0, -0.5, 9.0]]),
        ref_logprobs=torch.tensor([[0.0, -1.5, -0.25, 0.0]]),
        response_mask=torch.tensor([[False, True, True, False]]),
        kl_coef=0.1,
    )
    torch.testing.assert_close(rewards, torch.tensor([[0.0, -0.05, 2.025, 0.0]]))


def test_the_sum_of_the_rewards_is_the_penalised_score_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, ref_logprobs = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    scores = torch.randn(5, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 8, generator=generator) < 0.6
    mask[:, 0] = True  # every response has a token
    rewards = shape_rewards(
        scores=scores, logprobs=logprobs, ref_logprobs=ref_logprobs, response_mask=mask, kl_coef=0.2
    )
    for row in range(5):
        log_ratio = sum(logprobs[row, t].item() - ref_logprobs[row, t].item() for t in range(8) if mask[row, t].item())
        assert rewards[row].sum().item() == pytest.approx(scores[row].item() - 0.2 * log_ratio)


@EXAMPLES
@given(
    mask=masks(),
    seed=seeds,
    outside=rubbish,
    estimator=st.sampled_from(["k1", "k2", "k3"]),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_rewards_equal_a_loop_over_the_sampled_tokens_whatever_stands_outside(
    mask: Tensor, seed: int, outside: float, estimator: KLEstimator, scale: float
) -> None:
    logprobs, ref_logprobs, steps = numbers(mask, seed, names=3, scale=scale, outside=outside)
    scores = torch.arange(len(mask), dtype=torch.float64) - 1.5
    lists = zip(scores.tolist(), rows(logprobs, mask), rows(ref_logprobs, mask), rows(steps, mask), strict=True)
    expected = [reference.shape_rewards(s, p, q, 0.1, estimator, step) for s, p, q, step in lists]
    rewards = shape_rewards(
        scores=scores,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        response_mask=mask,
        kl_coef=0.1,
        estimator=estimator,
        step_rewards=steps,
    )
    torch.testing.assert_close(rewards, placed(expected, mask))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_without_a_coefficient_an_infinite_kl_adds_exactly_nothing(estimator: KLEstimator) -> None:
    rewards = shape_rewards(
        scores=torch.tensor([2.0]),
        logprobs=torch.tensor([[-1.0, -torch.inf, -1.0]]),
        ref_logprobs=torch.tensor([[-torch.inf, -1.0, torch.nan]]),
        response_mask=torch.tensor([[True, True, True]]),
        kl_coef=0.0,
        estimator=estimator,
    )
    assert rewards.tolist() == [[0.0, 0.0, 2.0]]


def test_the_score_stands_at_the_last_sampled_token_of_each_row() -> None:
    mask = torch.tensor(
        [
            [False, True, True, True, False],
            [False, True, False, True, False],
            [True, False, False, False, False],
            [False, False, False, False, True],
        ]
    )
    assert last_token_mask(response_mask=mask).nonzero().tolist() == [[0, 3], [1, 3], [2, 0], [3, 4]]


def test_the_score_of_an_empty_response_is_dropped() -> None:
    rewards = shape_rewards(
        scores=torch.tensor([5.0, 1.0]),
        logprobs=torch.zeros(2, 3),
        ref_logprobs=torch.zeros(2, 3),
        response_mask=torch.tensor([[False, False, False], [True, True, False]]),
        kl_coef=0.1,
    )
    assert rewards.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_rewards_do_not_read_the_padding() -> None:
    nan = torch.nan
    rewards = shape_rewards(
        scores=torch.tensor([1.0]),
        logprobs=torch.tensor([[nan, -1.0, nan]]),
        ref_logprobs=torch.tensor([[nan, -1.0, nan]]),
        response_mask=torch.tensor([[False, True, False]]),
        kl_coef=0.1,
        estimator="k3",
    )
    assert rewards.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 0.0), (80, 0.0), (81, 0.1), (90, 1.0), (99, 1.9), (100, 2.0), (250, 2.0)]
)
def test_the_overlong_penalty_grows_over_the_last_tokens_allowed(length: int, expected: float) -> None:
    found = overlong_penalty(lengths=torch.tensor([length]), max_tokens=100, overlong_tokens=20, penalty=2.0)
    assert found.tolist() == pytest.approx([expected])


@EXAMPLES
@given(lengths=st.lists(st.integers(0, 64), min_size=1), limit=st.integers(1, 50), share=st.floats(0, 1))
def test_the_overlong_penalty_equals_its_three_cases(lengths: list[int], limit: int, share: float) -> None:
    overlong = max(1, round(share * limit))
    found = overlong_penalty(lengths=torch.tensor(lengths), max_tokens=limit, overlong_tokens=overlong, penalty=0.7)
    expected = [reference.overlong_penalty(length, limit, overlong, 0.7) for length in lengths]
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_an_overlong_zone_that_does_not_fit_is_an_error() -> None:
    for tokens in (0, 101):
        with pytest.raises(ValueError, match=rf"overlong_tokens \({tokens}\)"):
            overlong_penalty(lengths=torch.zeros(1), max_tokens=100, overlong_tokens=tokens, penalty=1.0)
    with pytest.raises(ValueError, match=r"penalty \(-1.0\)"):
        overlong_penalty(lengths=torch.zeros(1), max_tokens=100, overlong_tokens=20, penalty=-1.0)


def test_a_response_that_was_cut_loses_the_penalty() -> None:
    scores = penalise_missing_eos(
        scores=torch.tensor([1.0, 1.0, -2.0]), finished=torch.tensor([True, False, False]), penalty=0.5
    )
    assert scores.tolist() == [1.0, 0.5, -2.5]


def test_a_negative_penalty_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"penalty \(-1.0\)"):
        penalise_missing_eos(scores=torch.zeros(1), finished=torch.ones(1, dtype=torch.bool), penalty=-1.0)


def test_scores_are_clipped_on_both_sides() -> None:
    assert clip_scores(scores=torch.tensor([-7.0, 0.5, 7.0]), limit=5.0).tolist() == [-5.0, 0.5, 5.0]
    with pytest.raises(ValueError, match=r"limit \(0\)"):
        clip_scores(scores=torch.zeros(1), limit=0)


def test_whitened_rewards_keep_their_mean_and_have_unit_variance() -> None:
    rewards = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mean, variance = mean_and_variance(moments(values=rewards, mask=mask))
    whitened = whiten_rewards(rewards=rewards, response_mask=mask, mean=mean, variance=variance)
    torch.testing.assert_close(whitened, torch.tensor([[2.0, 3.0, 0.0], [4.0, 0.0, 0.0]]))
