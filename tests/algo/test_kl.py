"""KL estimators against the exact KL of whole distributions, by summing over a small vocabulary instead of sampling."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from hypothesis import given
from torch import Tensor

from rlhf_ray.algo.kl import (
    MAX_LOG_RATIO,
    KLEstimator,
    KLLossEstimator,
    exact_kl,
    exact_kl_from_logprobs,
    kl_clamped,
    kl_estimate,
    kl_loss_terms,
)
from tests.algo import reference
from tests.algo.ragged import EXAMPLES, flat, masks, numbers, placed, rows, rubbish, seeds

LOSS_TERMS: tuple[KLLossEstimator, ...] = ("k2", "k3", "k3_unbiased")

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


# ----------------------------------------------------------------------------------------- the whole vocabulary at once
@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [3, 6] of a policy, of the older policy that sampled, and of a reference."""
    new, old, ref = torch.randn(3, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return new.requires_grad_(), old, ref


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value.sum(), logits)
    return found


def mean_gradient(estimator: str, policy: Tensor, old: Tensor, ref: Tensor) -> Tensor:
    """The mean of a term's gradient over every token that the old policy may sample."""
    new_logprobs, old_logprobs, ref_logprobs = (x.log_softmax(-1) for x in (policy, old, ref))
    if estimator == "k1":
        terms = kl_estimate(logprobs=new_logprobs, ref_logprobs=ref_logprobs)
    else:
        terms = kl_loss_terms(
            logprobs=new_logprobs,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            estimator=cast(KLLossEstimator, estimator),
        )
    return gradient(old_logprobs.detach().exp() * terms, policy)


def test_exact_kl_equals_its_definition(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    new, _, ref = logits
    expected = [
        reference.exact_kl(p, q) for p, q in zip(new.softmax(-1).tolist(), ref.softmax(-1).tolist(), strict=True)
    ]
    assert exact_kl(logits=new, ref_logits=ref).tolist() == pytest.approx(expected)
    from_logprobs = exact_kl_from_logprobs(logprobs=new.log_softmax(-1), ref_logprobs=ref.log_softmax(-1))
    assert from_logprobs.tolist() == pytest.approx(expected)


def test_the_gradient_of_the_exact_kl_flows_through_both_logits(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    new, _, ref = logits
    assert torch.autograd.gradcheck(lambda p, q: exact_kl(logits=p, ref_logits=q), (new, ref.requires_grad_()))
    assert torch.autograd.gradcheck(
        lambda p, q: exact_kl_from_logprobs(logprobs=p, ref_logprobs=q), (new, ref.requires_grad_())
    )


def test_the_gradient_of_the_exact_kl_is_finite_where_tokens_are_forbidden(
    logits: tuple[Tensor, Tensor, Tensor],
) -> None:
    new, _, ref = logits
    forbidden = torch.tensor([False, True, False, False, True, False])
    masked = new.masked_fill(forbidden, -torch.inf)
    found = gradient(exact_kl(logits=masked, ref_logits=ref.masked_fill(forbidden, -torch.inf)), new)
    allowed = new[:, ~forbidden]
    expected = torch.zeros_like(new)
    expected[:, ~forbidden] = gradient(exact_kl(logits=allowed, ref_logits=ref[:, ~forbidden]), allowed)
    torch.testing.assert_close(found, expected)


def test_k2_is_biased_by_what_the_distributions_say() -> None:
    # log ratios log 2, 0, -log 2, -log 2 with probabilities 1/2, 1/4, 1/8, 1/8: the mean square is 3/4 of (log 2)^2.
    mean = (P * kl_estimate(logprobs=P.log(), ref_logprobs=Q.log(), estimator="k2")).sum().item()
    assert mean == pytest.approx(0.375 * math.log(2) ** 2)
    assert mean - KL_OF_P_AND_Q == pytest.approx(0.00688, abs=1e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3_unbiased"])
def test_k2_and_corrected_k3_have_the_gradient_of_the_kl_on_policy(
    logits: tuple[Tensor, Tensor, Tensor], estimator: str
) -> None:
    new, _, ref = logits
    expected = gradient(exact_kl(logits=new, ref_logits=ref), new)
    torch.testing.assert_close(mean_gradient(estimator, new, new.detach(), ref), expected)


def test_corrected_k3_has_value_and_gradient_of_the_kl_off_policy_too(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    new, old, ref = logits
    exact = exact_kl(logits=new, ref_logits=ref)
    torch.testing.assert_close(mean_gradient("k3_unbiased", new, old, ref), gradient(exact, new))
    terms = kl_loss_terms(
        logprobs=new.log_softmax(-1),
        old_logprobs=old.log_softmax(-1),
        ref_logprobs=ref.log_softmax(-1),
        estimator="k3_unbiased",
    )
    torch.testing.assert_close((old.softmax(-1) * terms).sum(-1), exact_kl(logits=new, ref_logits=ref))


def test_k2_off_policy_is_no_gradient_of_the_kl(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    new, old, ref = logits
    expected = gradient(exact_kl(logits=new, ref_logits=ref), new)
    assert (mean_gradient("k2", new, old, ref) - expected).abs().max() > 0.1


def test_k3_has_the_gradient_of_the_forward_kl(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    new, _, ref = logits
    found = mean_gradient("k3", new, new.detach(), ref)
    torch.testing.assert_close(found, gradient(exact_kl(logits=ref, ref_logits=new), new))
    assert (found - gradient(exact_kl(logits=new, ref_logits=ref), new)).abs().max() > 0.1


def test_the_gradient_of_k1_has_mean_zero(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    new, _, ref = logits
    torch.testing.assert_close(mean_gradient("k1", new, new.detach(), ref), torch.zeros_like(ref))


# ----------------------------------------------------------------------------------------------------- token by token
@pytest.mark.parametrize("estimator", LOSS_TERMS)
@EXAMPLES
@given(mask=masks(), seed=seeds, outside=rubbish)
def test_loss_terms_and_their_gradient_equal_a_loop_over_tokens_whatever_stands_outside(
    estimator: KLLossEstimator, mask: Tensor, seed: int, outside: float
) -> None:
    new, old, ref = numbers(mask, seed, names=3, outside=outside)
    new.requires_grad_()
    terms = kl_loss_terms(logprobs=new, old_logprobs=old, ref_logprobs=ref, estimator=estimator, response_mask=mask)
    lists = [rows(tensor, mask) for tensor in (new, old, ref)]
    expected = [
        [reference.kl_loss_term(*token, estimator) for token in zip(*row, strict=True)]
        for row in zip(*lists, strict=True)
    ]
    torch.testing.assert_close(terms, placed(expected, mask))

    def total(changed: list[list[float]]) -> float:
        every = zip(flat(changed), flat(lists[1]), flat(lists[2]), strict=True)
        return sum(reference.kl_loss_term(*token, estimator) for token in every)

    slope = placed(reference.numerical_gradient(total, lists[0]), mask)
    torch.testing.assert_close(gradient(terms, new), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ["k3", "k3_unbiased"])
def test_loss_terms_and_gradients_stay_finite_where_exp_would_overflow(estimator: KLLossEstimator) -> None:
    new = torch.tensor([-500.0, 0.0, -500.0], requires_grad=True)
    terms = kl_loss_terms(
        logprobs=new,
        old_logprobs=torch.tensor([0.0, -500.0, -1.0]),
        ref_logprobs=torch.tensor([-1.0, -500.0, 0.0]),
        estimator=estimator,
    )
    assert terms.isfinite().all()
    assert gradient(terms, new).isfinite().all()


def test_clamped_tokens_are_those_beyond_the_cut_on_either_side() -> None:
    ref = torch.tensor([0.0, 0.0, 0.0, 0.0, -21.0])
    logprobs = torch.tensor([-20.0, -20.5, 20.5, 19.0, 0.0])
    found = kl_clamped(logprobs=logprobs, ref_logprobs=ref)
    assert found.tolist() == [False, True, True, False, True]


def test_k1_is_no_loss(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    new, old, ref = logits
    with pytest.raises(ValueError, match=r"estimator \('k1'\)"):
        kl_loss_terms(logprobs=new, old_logprobs=old, ref_logprobs=ref, estimator=cast(KLLossEstimator, "k1"))
