"""Losses against plain loops over Python floats, their gradients, and their indifference to how a batch is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from rlhf_ray.algo.losses import (
    LossSums,
    bradley_terry_loss,
    explained_variance,
    language_modelling_loss,
    value_loss,
)
from rlhf_ray.algo.policy_losses import policy_loss

ROWS, LENGTH = 6, 9


def mean_metrics(sums: LossSums) -> dict[str, float]:
    return {name: (total / weight).item() for name, (total, weight) in sums.metrics.items()}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Ragged rows in float64, one of a single token, one empty, one with a gap; NaN outside the mask."""
    generator = torch.Generator().manual_seed(0)
    names = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns")
    tensors = {name: torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64) for name in names}
    mask = torch.arange(LENGTH) < torch.tensor([[9], [5], [1], [0], [7], [3]])
    mask[0, 3:5] = False
    return {name: torch.where(mask, tensor, torch.nan) for name, tensor in tensors.items()} | {"response_mask": mask}


def ppo(logprobs: Tensor, batch: dict[str, Tensor], rows: Sequence[int] | slice = slice(None)) -> LossSums:
    return policy_loss(
        logprobs=logprobs[rows],
        old_logprobs=batch["old_logprobs"][rows],
        advantages=batch["advantages"][rows],
        response_mask=batch["response_mask"][rows],
        clip_ratio=0.2,
        clip_ratio_high=0.3,
    )


def critic(values: Tensor, batch: dict[str, Tensor], rows: Sequence[int] | slice = slice(None)) -> LossSums:
    return value_loss(
        values=values[rows],
        old_values=batch["old_values"][rows],
        returns=batch["returns"][rows],
        response_mask=batch["response_mask"][rows],
        value_clip=0.2,
    )


# --------------------------------------------------------------------------------------------------------------- policy
def test_policy_loss_equals_a_loop_over_tokens(batch: dict[str, Tensor]) -> None:
    total, clipped, kl_k1, kl_k3, ratios = 0.0, 0, 0.0, 0.0, []
    for row, column in batch["response_mask"].nonzero().tolist():
        new, old, advantage = (batch[name][row, column].item() for name in ("logprobs", "old_logprobs", "advantages"))
        ratio = math.exp(new - old)
        kept = min(max(ratio, 0.8), 1.3)
        total += -min(ratio * advantage, kept * advantage)
        clipped += kept * advantage < ratio * advantage
        kl_k1 += old - new
        kl_k3 += ratio - 1 - (new - old)
        ratios.append(ratio)

    sums = ppo(batch["logprobs"], batch)
    assert sums.weight.item() == len(ratios) == 23
    assert sums.loss.item() == pytest.approx(total)
    assert mean_metrics(sums) == {
        "clip_fraction": pytest.approx(clipped / 23),
        "dual_clip_fraction": 0.0,
        "approx_kl_k1": pytest.approx(kl_k1 / 23),
        "approx_kl_k3": pytest.approx(kl_k3 / 23),
        "ratio": pytest.approx(sum(ratios) / 23),
    }
    assert sums.maxima["ratio_max"].item() == pytest.approx(max(ratios))


def test_policy_gradient_of_unchanged_weights_is_minus_the_advantage(batch: dict[str, Tensor]) -> None:
    logprobs = batch["old_logprobs"].clone().requires_grad_()
    sums = ppo(logprobs, batch)
    sums.loss.backward()
    mask = batch["response_mask"]
    torch.testing.assert_close(logprobs.grad, torch.where(mask, -batch["advantages"], 0.0))
    metrics = mean_metrics(sums)
    assert metrics.pop("ratio") == 1.0
    assert not any(metrics.values())


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(1.5, 1.0, 0.0), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (0.5, -1.0, 0.0), (1.25, 1.0, -1.25), (1.35, 1.0, 0.0)],
)
def test_clipping_removes_the_gradient_only_where_the_update_went_far_enough(
    ratio: float, advantage: float, gradient: float
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    sums = policy_loss(
        logprobs=logprobs,
        old_logprobs=torch.zeros(1, 1),
        advantages=torch.tensor([[advantage]]),
        response_mask=torch.ones(1, 1, dtype=torch.bool),
        clip_ratio=0.2,
        clip_ratio_high=0.3,
    )
    sums.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gradient)
    assert mean_metrics(sums)["clip_fraction"] == (gradient == 0)


def test_policy_loss_stays_finite_for_a_ratio_that_overflows() -> None:
    logprobs = torch.tensor([[0.0]], requires_grad=True)
    sums = policy_loss(
        logprobs=logprobs,
        old_logprobs=torch.tensor([[-1000.0]]),
        advantages=torch.tensor([[-1.0]]),
        response_mask=torch.ones(1, 1, dtype=torch.bool),
        clip_ratio=0.2,
    )
    sums.loss.backward()
    assert sums.loss.item() == pytest.approx(math.exp(20))
    assert logprobs.grad is not None
    assert math.isfinite(logprobs.grad.item())


def test_a_negative_clip_ratio_is_an_error(batch: dict[str, Tensor]) -> None:
    arguments = {name: batch[name] for name in ("logprobs", "old_logprobs", "advantages", "response_mask")}
    with pytest.raises(ValueError, match=r"clip_ratio \(-0.1\)"):
        policy_loss(**arguments, clip_ratio=-0.1)


# --------------------------------------------------------------------------------------------------------------- critic
def test_value_loss_equals_a_loop_over_tokens(batch: dict[str, Tensor]) -> None:
    total, clipped = 0.0, 0
    for row, column in batch["response_mask"].nonzero().tolist():
        value, old, target = (batch[name][row, column].item() for name in ("values", "old_values", "returns"))
        near_old = min(max(value, old - 0.2), old + 0.2)
        total += 0.5 * max((value - target) ** 2, (near_old - target) ** 2)
        clipped += (near_old - target) ** 2 > (value - target) ** 2
    sums = critic(batch["values"], batch)
    assert sums.loss.item() == pytest.approx(total)
    assert sums.weight.item() == 23
    assert mean_metrics(sums)["value_clip_fraction"] == pytest.approx(clipped / 23)


def test_value_loss_without_a_clip_is_half_the_squared_error(batch: dict[str, Tensor]) -> None:
    names = ("old_values", "returns", "response_mask")
    values = batch["values"].clone().requires_grad_()
    sums = value_loss(values=values, **{name: batch[name] for name in names}, value_clip=None)
    errors = (batch["values"] - batch["returns"])[batch["response_mask"]]
    assert sums.loss.item() == pytest.approx(0.5 * errors.square().sum().item())
    sums.loss.backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad[batch["response_mask"]], errors)


def test_explained_variance_follows_from_the_metrics(batch: dict[str, Tensor]) -> None:
    mask = batch["response_mask"]
    returns, values = batch["returns"][mask], batch["values"][mask]
    expected = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
    assert explained_variance(mean_metrics(critic(batch["values"], batch))) == pytest.approx(expected.item())


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_constant_returns(
    batch: dict[str, Tensor],
) -> None:
    assert explained_variance(mean_metrics(critic(batch["returns"], batch))) == pytest.approx(1.0)
    constant = batch | {"returns": torch.full((ROWS, LENGTH), 0.1, dtype=torch.float64)}
    assert explained_variance(mean_metrics(critic(batch["values"], constant))) == 0.0


# --------------------------------------------------------------------------------------------- however the batch is cut
@pytest.mark.parametrize("cut", [[[0, 1, 2, 3, 4, 5]], [[3], [0, 4], [1, 2, 5]], [[5], [4], [3], [2], [1], [0]]])
@pytest.mark.parametrize(("name", "loss"), [("logprobs", ppo), ("values", critic)])
def test_no_cut_into_micro_batches_changes_the_gradient(
    batch: dict[str, Tensor], name: str, loss: Callable[..., LossSums], cut: list[list[int]]
) -> None:
    whole, parts = batch[name].clone().requires_grad_(), batch[name].clone().requires_grad_()
    sums = loss(whole, batch)
    (sums.loss / sums.weight).backward()

    weight = sum(loss(batch[name], batch, rows).weight for rows in cut)
    for rows in cut:
        (loss(parts, batch, rows).loss / weight).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


@pytest.mark.parametrize(("name", "loss"), [("logprobs", ppo), ("values", critic)])
def test_padding_changes_neither_loss_nor_metrics_nor_gradient(
    batch: dict[str, Tensor], name: str, loss: Callable[..., LossSums]
) -> None:
    padded = {
        key: torch.cat([t, torch.full((ROWS, 4), t.dtype.is_floating_point and torch.nan, dtype=t.dtype)], -1)
        for key, t in batch.items()
    }
    short, long = batch[name].clone().requires_grad_(), padded[name].clone().requires_grad_()
    sums, sums_of_padded = loss(short, batch), loss(long, padded)
    sums.loss.backward()
    sums_of_padded.loss.backward()
    assert sums_of_padded.weight.item() == sums.weight.item()
    assert mean_metrics(sums_of_padded) == pytest.approx(mean_metrics(sums))
    assert short.grad is not None
    assert long.grad is not None
    torch.testing.assert_close(long.grad[:, :LENGTH], short.grad)
    assert not long.grad[:, LENGTH:].any()


@pytest.mark.parametrize(("name", "loss"), [("logprobs", ppo), ("values", critic)])
@pytest.mark.parametrize("rows", [[3], []])
def test_rows_without_sampled_tokens_give_a_zero_loss_that_still_runs_backward(
    batch: dict[str, Tensor], name: str, loss: Callable[..., LossSums], rows: list[int]
) -> None:
    tensor = batch[name].clone().requires_grad_()
    sums = loss(tensor, batch, rows)
    sums.loss.backward()
    assert (sums.loss.item(), sums.weight.item()) == (0.0, 0.0)
    assert tensor.grad is not None
    assert not tensor.grad.any()


def test_metrics_are_detached_and_in_float64(batch: dict[str, Tensor]) -> None:
    logprobs = batch["logprobs"].float().requires_grad_()
    sums = ppo(logprobs, batch)
    tensors = [*sums.maxima.values(), *(tensor for pair in sums.metrics.values() for tensor in pair)]
    assert {(tensor.requires_grad, tensor.dtype) for tensor in tensors} == {(False, torch.float64)}


# ------------------------------------------------------------------------------------- language modelling, preferences
def test_language_modelling_loss_is_the_summed_negative_log_likelihood() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, torch.nan], [-4.0, torch.nan, torch.nan]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    sums = language_modelling_loss(logprobs=logprobs, mask=mask)
    sums.loss.backward()
    assert (sums.loss.item(), sums.weight.item()) == (7.0, 3.0)
    assert mean_metrics(sums) == {"negative_log_likelihood": pytest.approx(7 / 3)}
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]


def test_bradley_terry_loss_of_one_pair_by_hand() -> None:
    # r_c - r_r - m = log 3, so the loss is log(1 + 1/3); the centring adds 0.1 * (2 + 1)^2.
    sums = bradley_terry_loss(
        chosen_scores=torch.tensor([2.0]),
        rejected_scores=torch.tensor([1.0]),
        margins=torch.tensor([1.0 - math.log(3)]),
        centering=0.1,
    )
    assert sums.loss.item() == pytest.approx(math.log(4 / 3) + 0.9)
    assert mean_metrics(sums) == {"accuracy": 1.0, "score_margin": 1.0, "chosen_scores": 2.0, "rejected_scores": 1.0}


def test_bradley_terry_gradient_is_the_probability_of_the_wrong_order() -> None:
    chosen = torch.tensor([1.0, -2.0], requires_grad=True)
    bradley_terry_loss(chosen_scores=chosen, rejected_scores=torch.tensor([0.5, 3.0])).loss.backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-1 / (1 + math.exp(0.5)), -1 / (1 + math.exp(-5.0))])


def test_bradley_terry_weights_let_every_prompt_count_once() -> None:
    # Prompt one has three pairs, prompt two has one: the mean is over two prompts.
    chosen, rejected = torch.tensor([1.0, 2.0, 0.0, 5.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    sums = bradley_terry_loss(
        chosen_scores=chosen, rejected_scores=rejected, weights=torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0])
    )
    by_pair = [math.log1p(math.exp(-d)) for d in (1.0, 2.0, -1.0, 4.0)]
    assert sums.weight.item() == pytest.approx(2.0)
    assert (sums.loss / sums.weight).item() == pytest.approx((sum(by_pair[:3]) / 3 + by_pair[3]) / 2)
    assert mean_metrics(sums)["accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_tied_scores_count_half_in_the_accuracy() -> None:
    scores = torch.tensor([1.0, 0.0, 2.0, 0.5])
    sums = bradley_terry_loss(chosen_scores=scores, rejected_scores=torch.tensor([1.0, 1.0, 1.0, 0.5]))
    assert mean_metrics(sums)["accuracy"] == 0.5


def test_bradley_terry_loss_stays_finite_for_scores_far_apart() -> None:
    sums = bradley_terry_loss(chosen_scores=torch.tensor([-1e4]), rejected_scores=torch.tensor([1e4]))
    assert sums.loss.item() == pytest.approx(2e4)
