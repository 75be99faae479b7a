"""Per-token rewards against hand computations and a plain loop."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.algo.masked import mean_and_variance, moments
from rlhf_ray.algo.rewards import (
    clip_scores,
    last_token_mask,
    penalise_missing_eos,
    shape_rewards,
    whiten_rewards,
)


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
