"""The policy's surrogates against loops over Python floats, their gradients against central differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algo.advantages import per_token
from rlhf_ray.algo.losses import LossSums, aggregation_weights
from rlhf_ray.algo.policy_losses import cispo_loss, gspo_loss, policy_loss, response_loss
from tests.algo import reference
from tests.algo.ragged import EXAMPLES, flat, masks, numbers, placed, rows, rubbish, seeds, widened

Surrogate: TypeAlias = Callable[..., LossSums]
SURROGATES: tuple[Surrogate, ...] = (policy_loss, response_loss, gspo_loss, cispo_loss)
every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES)
CLIPS = {"clip_ratio": 0.2, "clip_ratio_high": 0.3}
LOW, HIGH = 0.8, 1.3
MASK = torch.tensor([[True, True, False, True, True], [True] + [False] * 4, [False] * 5])
scales = st.sampled_from([0.1, 1.0, 30.0])


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, of)
    return found


def totals(sums: LossSums) -> dict[str, float]:
    return {name: total.item() for name, (total, _) in sums.metrics.items()}


def batch(mask: Tensor, seed: int, *, scale: float = 1.0, outside: float = math.nan) -> dict[str, Any]:
    """Arguments of any surrogate; half of the difference between old and new is that of the whole row."""
    (old,) = numbers(mask, seed, outside=outside)
    advantages, weights = numbers(mask, seed + 3, names=2)  # NaN outside, also where the log-probabilities are numbers
    steps, jumps = numbers(torch.ones_like(mask), seed + 1, names=2, scale=0.5 * scale)
    return {
        "logprobs": (old + steps + jumps[:, :1]).requires_grad_(),
        "old_logprobs": old,
        "advantages": advantages,
        "response_mask": mask,
        "token_weights": weights,
    }


def lists_of(arguments: dict[str, Any]) -> list[list[list[float]]]:
    names = ("logprobs", "old_logprobs", "advantages", "token_weights")
    return [rows(arguments[name], arguments["response_mask"]) for name in names]


# ------------------------------------------------------------------------------------------------------------------ PPO
@EXAMPLES
@given(mask=masks(), seed=seeds, scale=scales, outside=rubbish, dual_clip=st.sampled_from([0.0, 1.5, 3.0]))
def test_the_clipped_surrogate_and_its_gradient_equal_a_loop_over_tokens(
    mask: Tensor, seed: int, scale: float, outside: float, dual_clip: float
) -> None:
    arguments = batch(mask, seed, scale=scale, outside=outside)
    new, old, advantages, weights = lists_of(arguments)

    def total(changed: list[list[float]]) -> float:
        tokens = zip(flat(changed), flat(old), flat(advantages), flat(weights), strict=True)
        return sum(w * reference.ppo_token(n, o, a, LOW, HIGH, dual_clip) for n, o, a, w in tokens)

    sums = policy_loss(**arguments, **CLIPS, dual_clip=dual_clip)
    size = max(abs(total(new)), 1.0)
    assert sums.loss.item() == pytest.approx(total(new), abs=1e-9 * size)
    assert sums.weight.item() == len(flat(new))
    slope = placed(reference.numerical_gradient(total, new), mask)
    torch.testing.assert_close(gradient(sums.loss, arguments["logprobs"]), slope, rtol=1e-5, atol=1e-7 * size)


@EXAMPLES
@given(mask=masks(), seed=seeds, scale=scales, outside=rubbish)
def test_the_metrics_of_the_clipped_surrogate_equal_a_loop_over_tokens(
    mask: Tensor, seed: int, scale: float, outside: float
) -> None:
    arguments = batch(mask, seed, scale=scale, outside=outside)
    new, old, advantages, _ = (flat(lists) for lists in lists_of(arguments))
    ratios = [reference.bounded_exp(n - o) for n, o in zip(new, old, strict=True)]
    sums = policy_loss(**arguments, **CLIPS, dual_clip=2.0)
    pairs = list(zip(ratios, advantages, strict=True))
    k3 = sum(reference.kl(o, n, "k3") for o, n in zip(old, new, strict=True))
    assert totals(sums) == {
        "clip_fraction": sum((r > HIGH and a > 0) or (r < LOW and a < 0) for r, a in pairs),
        "dual_clip_fraction": sum(r > 2.0 and a < 0 for r, a in pairs),
        "approx_kl_k1": pytest.approx(sum(old) - sum(new), rel=1e-9, abs=1e-9),
        "approx_kl_k3": pytest.approx(k3, rel=1e-9, abs=1e-9),
        "ratio": pytest.approx(sum(ratios)),
    }
    assert {weight.item() for _, weight in sums.metrics.values()} == {len(new)}
    assert sums.maxima["ratio_max"].item() == pytest.approx(max(ratios, default=0.0))


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient_by_hand"),
    [(1.5, 1.0, 0.0), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (0.5, -1.0, 0.0), (1.25, 1.0, -1.25), (1.35, 1.0, 0.0)],
)
def test_clipping_removes_the_gradient_only_where_the_update_went_far_enough(
    ratio: float, advantage: float, gradient_by_hand: float
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    one_token = {
        "logprobs": logprobs,
        "old_logprobs": torch.zeros(1, 1),
        "advantages": torch.tensor([[advantage]]),
        "response_mask": torch.ones(1, 1, dtype=torch.bool),
    }
    for surrogate in (policy_loss, response_loss, gspo_loss):  # a sequence of one token is that token
        sums = surrogate(**one_token, **CLIPS)
        assert gradient(sums.loss, logprobs).item() == pytest.approx(gradient_by_hand)
        assert totals(sums)["clip_fraction"] == (gradient_by_hand == 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "cut"),
    [
        (2.0, -1.0, 2.0, 2.0, 0),  # below three times the advantage: as without the bound
        (5.0, -1.0, 3.0, 0.0, 1),  # bounded, and without a gradient
        (5.0, 1.0, -1.3, 0.0, 0),  # a positive advantage is bounded by the clip alone
    ],
)
def test_dual_clip_bounds_the_loss_of_a_negative_advantage_only(
    ratio: float, advantage: float, loss: float, slope: float, cut: int
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    sums = policy_loss(
        logprobs=logprobs,
        old_logprobs=torch.zeros(1, 1),
        advantages=torch.tensor([[advantage]]),
        response_mask=torch.ones(1, 1, dtype=torch.bool),
        dual_clip=3.0,
        **CLIPS,
    )
    assert sums.loss.item() == pytest.approx(loss)
    assert gradient(sums.loss, logprobs).item() == pytest.approx(slope)
    assert totals(sums)["dual_clip_fraction"] == cut


# ----------------------------------------------------------------------------------------------------------------- GSPO
@EXAMPLES
@given(mask=masks(), seed=seeds, scale=st.sampled_from([0.1, 1.0, 3.0]), outside=rubbish)
def test_gspo_with_weights_of_one_over_length_has_loss_and_gradient_of_the_sequence_objective(
    mask: Tensor, seed: int, scale: float, outside: float
) -> None:
    arguments = batch(mask, seed, scale=scale, outside=outside)
    new, old, _, _ = lists_of(arguments)
    (of_rows,) = numbers(torch.ones(len(mask), dtype=torch.bool), seed + 2)
    arguments["advantages"] = per_token(advantages=of_rows, response_mask=mask)
    arguments["token_weights"] = aggregation_weights(response_mask=mask, aggregation="sequence_mean")

    def total(changed: list[list[float]]) -> float:
        every = zip(changed, old, of_rows.tolist(), strict=True)
        return sum(reference.gspo_sequence(n, o, a, LOW, HIGH) for n, o, a in every)

    sums = gspo_loss(**arguments, **CLIPS)
    assert sums.loss.item() == pytest.approx(total(new), abs=1e-9)
    slope = placed(reference.numerical_gradient(total, new), mask)
    torch.testing.assert_close(gradient(sums.loss, arguments["logprobs"]), slope, rtol=1e-5, atol=1e-6)


def test_gspo_counts_ratios_of_sequences_and_kl_of_tokens() -> None:
    arguments = batch(MASK, 0)
    new, old, advantages, _ = lists_of(arguments)
    ratios = [reference.sequence_ratio(n, o) for n, o in zip(new[:2], old[:2], strict=True)]
    sums = gspo_loss(**arguments, **CLIPS)
    expected = sum(reference.kl(o, n, "k3") for n, o in zip(flat(new), flat(old), strict=True))
    assert totals(sums)["approx_kl_k3"] == pytest.approx(expected)
    assert totals(sums)["ratio"] == pytest.approx(4 * ratios[0] + ratios[1])
    assert sums.maxima["ratio_max"].item() == pytest.approx(max(ratios))
    outside = [(r > HIGH and a > 0) or (r < LOW and a < 0) for i, r in enumerate(ratios) for a in advantages[i]]
    assert totals(sums)["clip_fraction"] == sum(outside)
    assert totals(sums)["dual_clip_fraction"] == 0


def test_in_float32_not_a_bit_of_a_sequence_ratio_depends_on_how_far_its_row_is_padded() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(100, 300, generator=generator) < 0.8
    tensors = [0.1 * torch.randn(100, 300, generator=generator) for _ in range(3)]

    def slope(columns: int) -> Tensor:
        new, old, advantages, wide = (widened(tensor, columns) for tensor in (*tensors, mask))
        new.requires_grad_()
        sums = gspo_loss(logprobs=new, old_logprobs=old, advantages=advantages, response_mask=wide, **CLIPS)
        return gradient(sums.loss, new)[:, :300]

    assert torch.equal(slope(37), slope(0))


# ----------------------------------------------------------------------------------------------------- whole responses
@EXAMPLES
@given(mask=masks(), seed=seeds, scale=st.sampled_from([0.1, 1.0]), outside=rubbish)
def test_a_response_s_ratio_has_the_gradient_of_one_clipped_term_a_response(
    mask: Tensor, seed: int, scale: float, outside: float
) -> None:
    arguments = batch(mask, seed, scale=scale, outside=outside)
    new, old, _, _ = lists_of(arguments)
    (of_rows,) = numbers(torch.ones(len(mask), dtype=torch.bool), seed + 2)
    arguments["advantages"] = per_token(advantages=of_rows, response_mask=mask)
    arguments["token_weights"] = None

    def term(row: list[float], index: int) -> float:
        return reference.response_surrogate(row, old[index], of_rows[index].item(), LOW, HIGH)

    def total(changed: list[list[float]]) -> float:
        return sum(term(row, index) for index, row in enumerate(changed))

    sums = response_loss(**arguments, **CLIPS)
    once_a_token = sum(len(row) * term(row, index) for index, row in enumerate(new))
    assert sums.loss.item() == pytest.approx(once_a_token, rel=1e-9, abs=1e-9)
    slope = placed(reference.numerical_gradient(total, new), mask)
    torch.testing.assert_close(gradient(sums.loss, arguments["logprobs"]), slope, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- CISPO
@EXAMPLES
@given(mask=masks(), seed=seeds, scale=scales, outside=rubbish)
def test_cispo_keeps_every_token_s_gradient_at_the_clipped_weight(
    mask: Tensor, seed: int, scale: float, outside: float
) -> None:
    arguments = batch(mask, seed, scale=scale, outside=outside)
    slopes = [
        [w * reference.cispo_token_gradient(n, o, a, LOW, HIGH) for n, o, a, w in zip(*row, strict=True)]
        for row in zip(*lists_of(arguments), strict=True)
    ]
    sums = cispo_loss(**arguments, **CLIPS)
    torch.testing.assert_close(gradient(sums.loss, arguments["logprobs"]), placed(slopes, mask))
    tokens = zip(flat(slopes), flat(rows(arguments["logprobs"], mask)), strict=True)
    assert sums.loss.item() == pytest.approx(sum(slope * new for slope, new in tokens), abs=1e-9)
    new, old, _, _ = (flat(lists) for lists in lists_of(arguments))
    ratios = [reference.bounded_exp(n - o) for n, o in zip(new, old, strict=True)]
    assert totals(sums)["clip_fraction"] == sum(not LOW <= ratio <= HIGH for ratio in ratios)
    assert sums.maxima["ratio_max"].item() == pytest.approx(max(ratios, default=0.0))


# ------------------------------------------------------------------------------------------------------ all three alike
@every_surrogate
def test_the_gradient_of_unchanged_weights_is_minus_the_advantage(surrogate: Surrogate) -> None:
    arguments = batch(MASK, 0) | {"token_weights": None}
    arguments["logprobs"] = arguments["old_logprobs"].clone().requires_grad_()
    sums = surrogate(**arguments, **CLIPS)
    expected = torch.where(MASK, -arguments["advantages"], 0.0)
    torch.testing.assert_close(gradient(sums.loss, arguments["logprobs"]), expected)
    assert totals(sums) == {
        "clip_fraction": 0.0,
        "dual_clip_fraction": 0.0,
        "approx_kl_k1": 0.0,
        "approx_kl_k3": 0.0,
        "ratio": 5.0,
    }


@every_surrogate
@EXAMPLES
@given(mask=masks(), seed=seeds, columns=st.integers(1, 5), order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_neither_padding_nor_order_nor_a_cut_into_micro_batches_changes_loss_metrics_or_gradient(
    surrogate: Surrogate, mask: Tensor, seed: int, columns: int, order: list[int], cut: int
) -> None:
    arguments = batch(mask, seed)
    whole = surrogate(**arguments, **CLIPS)
    wide = {name: widened(tensor, columns) for name, tensor in arguments.items()}
    own = [row for row in order if row < len(mask)]
    parts = [
        surrogate(**{name: tensor[half] for name, tensor in wide.items()}, **CLIPS) for half in (own[:cut], own[cut:])
    ]
    loss = torch.stack([part.loss for part in parts]).sum()
    torch.testing.assert_close(loss, whole.loss)
    leaf = arguments["logprobs"]
    torch.testing.assert_close(gradient(loss, leaf), gradient(whole.loss, leaf))
    assert sum(part.weight.item() for part in parts) == whole.weight.item()
    for name, (total, weight) in whole.metrics.items():
        assert sum(part.metrics[name][0].item() for part in parts) == pytest.approx(total.item())
        assert sum(part.metrics[name][1].item() for part in parts) == weight.item()
    assert max(part.maxima["ratio_max"] for part in parts) == pytest.approx(whole.maxima["ratio_max"].item())


@every_surrogate
@pytest.mark.parametrize("selected", [[2], []])
@pytest.mark.parametrize("weighted", [True, False])
def test_rows_without_sampled_tokens_give_a_zero_loss_that_still_runs_backward(
    surrogate: Surrogate, selected: list[int], weighted: bool
) -> None:
    arguments = batch(MASK, 0)
    own = {name: tensor[selected] for name, tensor in arguments.items()}
    sums = surrogate(**(own if weighted else own | {"token_weights": None}), **CLIPS)
    assert (sums.loss.item(), sums.weight.item(), sums.maxima["ratio_max"].item()) == (0.0, 0.0, 0.0)
    assert not gradient(sums.loss, arguments["logprobs"]).any()


@every_surrogate
def test_token_weights_multiply_the_loss_and_leave_weight_and_metrics_alone(surrogate: Surrogate) -> None:
    arguments = batch(MASK, 0)
    plain = surrogate(**arguments | {"token_weights": None}, **CLIPS)
    ones = surrogate(**arguments | {"token_weights": torch.ones_like(arguments["advantages"])}, **CLIPS)
    doubled = surrogate(**arguments | {"token_weights": torch.full_like(arguments["advantages"], 2.0)}, **CLIPS)
    assert torch.equal(ones.loss, plain.loss)
    assert torch.equal(doubled.loss, 2 * plain.loss)
    assert totals(doubled) == totals(plain)
    assert doubled.weight.item() == plain.weight.item() == 5


@every_surrogate
def test_a_ratio_that_overflows_stays_finite_and_so_does_its_gradient(surrogate: Surrogate) -> None:
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    sums = surrogate(
        logprobs=logprobs,
        old_logprobs=torch.tensor([[-1000.0]]),
        advantages=torch.tensor([[-1.0]]),
        response_mask=torch.ones(1, 1, dtype=torch.bool),
        **CLIPS,
    )
    assert sums.loss.item() == pytest.approx(-1.3 if surrogate is cispo_loss else math.exp(20))
    assert sums.maxima["ratio_max"].item() == pytest.approx(math.exp(20))
    assert gradient(sums.loss, logprobs).isfinite().all()


@every_surrogate
def test_metrics_are_detached_float64_and_the_loss_keeps_the_type_of_the_logprobs(surrogate: Surrogate) -> None:
    arguments = batch(MASK, 0)
    logprobs = arguments["logprobs"].detach().float().requires_grad_()
    sums = surrogate(**arguments | {"logprobs": logprobs, "old_logprobs": arguments["old_logprobs"].float()}, **CLIPS)
    tensors = [*sums.maxima.values(), *(tensor for pair in sums.metrics.values() for tensor in pair)]
    assert {(tensor.requires_grad, tensor.dtype) for tensor in tensors} == {(False, torch.float64)}
    assert sums.loss.dtype is torch.float32


@every_surrogate
@pytest.mark.parametrize(("high", "bound"), [(None, 1.1), (0.4, 1.4)])
def test_without_an_upper_clip_ratio_the_lower_one_bounds_both_sides(
    surrogate: Surrogate, high: float | None, bound: float
) -> None:
    sums = surrogate(
        logprobs=torch.tensor([[-1.0]]),
        old_logprobs=torch.tensor([[-3.0]]),
        advantages=torch.tensor([[1.0]]),
        response_mask=torch.ones(1, 1, dtype=torch.bool),
        clip_ratio=0.1,
        clip_ratio_high=high,
    )
    assert abs(sums.loss.item()) == pytest.approx(bound)


@every_surrogate
def test_a_negative_clip_ratio_is_an_error(surrogate: Surrogate) -> None:
    with pytest.raises(ValueError, match=r"clip_ratio \(-0.1\)"):
        surrogate(**batch(MASK, 0), clip_ratio=-0.1)


def test_a_dual_clip_of_at_most_one_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"dual_clip \(1.0\)"):
        policy_loss(**batch(MASK, 0), clip_ratio=0.2, dual_clip=1.0)
