"""KL estimators against the exact KL of whole distributions."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch

from rlhf_ray.algo.kl import MAX_LOG_RATIO, KLEstimator, exact_kl, kl_estimate

P = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
KL_OF_P_AND_Q = 0.25 * math.log(2)  # 0.5 log 2 + 0 - 2 * 0.125 log 2


def test_exact_kl_by_hand() -> None:
    assert exact_kl(logits=P.log(), ref_logits=Q.log() + 3.0).item() == pytest.approx(KL_OF_P_AND_Q)


def test_exact_kl_ignores_tokens_that_the_policy_never_samples() -> None:
    logits = torch.tensor([0.0, 0.0, -torch.inf])
    ref_logits = torch.tensor([0.0, 0.0, -torch.inf])
    assert exact_kl(logits=logits, ref_logits=ref_logits).item() == 0.0


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator: str) -> None:
    per_token = kl_estimate(logprobs=P.log(), ref_logprobs=Q.log(), estimator=cast(KLEstimator, estimator))
    assert (P * per_token).sum().item() == pytest.approx(KL_OF_P_AND_Q)


def test_estimates_of_one_token_by_hand() -> None:
    # The policy gives the token 1/2, the reference 1/4: log r = -log 2.
    estimates = {
        name: kl_estimate(
            logprobs=torch.tensor([0.5]).log(), ref_logprobs=torch.tensor([0.25]).log(), estimator=name
        ).item()
        for name in ("k1", "k2", "k3")
    }
    assert estimates == {
        "k1": pytest.approx(math.log(2)),
        "k2": pytest.approx(math.log(2) ** 2 / 2),
        "k3": pytest.approx(0.5 - 1 + math.log(2)),
    }


def test_k2_and_k3_are_never_negative_and_k3_keeps_small_differences() -> None:
    logprobs = torch.linspace(-6, 0, 101)
    for name in ("k2", "k3"):
        assert (kl_estimate(logprobs=logprobs, ref_logprobs=logprobs.flip(0), estimator=name) >= 0).all()
    tiny = kl_estimate(logprobs=torch.tensor([0.0]), ref_logprobs=torch.tensor([1e-3]), estimator="k3")
    assert tiny.item() == pytest.approx(0.5e-6, rel=1e-2)


def test_k3_stays_finite_where_exp_would_overflow() -> None:
    far = kl_estimate(logprobs=torch.tensor([-500.0, 0.0]), ref_logprobs=torch.tensor([0.0, -500.0]), estimator="k3")
    assert far.tolist() == pytest.approx([math.expm1(MAX_LOG_RATIO) - MAX_LOG_RATIO, 499.0])


def test_half_precision_logprobs_are_compared_in_float32() -> None:
    half = torch.tensor([-1.0], dtype=torch.bfloat16)
    assert kl_estimate(logprobs=half, ref_logprobs=half).dtype is torch.float32


def test_an_unknown_estimator_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"estimator \('k4'\)"):
        kl_estimate(logprobs=P, ref_logprobs=Q, estimator=cast(KLEstimator, "k4"))
