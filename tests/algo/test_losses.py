"""Losses against plain loops over Python floats, their gradients, and their indifference to how a batch is cut."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algo.losses import (
    Aggregation,
    LossSums,
    aggregation_total,
    aggregation_weights,
    bradley_terry_loss,
    explained_variance,
    language_modelling_loss,
    step_label_loss,
    value_loss,
)
from tests.algo import reference
from tests.algo.ragged import EXAMPLES, flat, masks, numbers, placed, rows, rubbish, seeds, widened

AGGREGATIONS: tuple[Aggregation, ...] = ("token_mean", "sequence_mean", "sequence_sum", "constant")
value_clips = st.sampled_from([None, 0.0, 0.2])
MASK = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4, [True] * 4])


def mean_metrics(sums: LossSums) -> dict[str, float]:
    return {name: (total / weight).item() for name, (total, weight) in sums.metrics.items()}


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, of)
    return found


def critic(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, value_clip: float | None = 0.2) -> LossSums:
    return value_loss(values=values, old_values=old, returns=returns, response_mask=mask, value_clip=value_clip)


# --------------------------------------------------------------------------------------------------------------- critic
@EXAMPLES
@given(mask=masks(), seed=seeds, outside=rubbish, value_clip=value_clips)
def test_value_loss_and_its_gradient_equal_a_loop_over_tokens_whatever_stands_outside(
    mask: Tensor, seed: int, outside: float, value_clip: float | None
) -> None:
    values, old, returns = numbers(mask, seed, names=3, outside=outside)
    lists = [rows(tensor, mask) for tensor in (values, old, returns)]

    def total(changed: list[list[float]]) -> float:
        tokens = zip(flat(changed), flat(lists[1]), flat(lists[2]), strict=True)
        return sum(reference.value_token(*token, value_clip) for token in tokens)

    sums = critic(values.requires_grad_(), old, returns, mask, value_clip)
    assert sums.loss.item() == pytest.approx(total(lists[0]))
    assert sums.weight.item() == len(flat(lists[0]))
    slope = placed(reference.numerical_gradient(total, lists[0]), mask)
    torch.testing.assert_close(gradient(sums.loss, values), slope, rtol=1e-6, atol=1e-6)
    clipped = [
        reference.value_token(*token, value_clip) > reference.value_token(*token, None)
        for token in zip(*map(flat, lists), strict=True)
    ]
    assert sums.metrics["value_clip_fraction"][0].item() == sum(clipped)


@EXAMPLES
@given(mask=masks(), seed=seeds, columns=st.integers(1, 5), cut=st.integers(0, 5))
def test_neither_padding_nor_a_cut_into_micro_batches_changes_the_critic_s_loss_metrics_or_gradient(
    mask: Tensor, seed: int, columns: int, cut: int
) -> None:
    values, old, returns = numbers(mask, seed, names=3)
    whole = critic(values.requires_grad_(), old, returns, mask)
    wide = [widened(tensor, columns) for tensor in (values, old, returns, mask)]
    parts = [critic(*(tensor[half] for tensor in wide)) for half in (slice(cut), slice(cut, None))]
    loss = torch.stack([part.loss for part in parts]).sum()
    torch.testing.assert_close(loss, whole.loss)
    torch.testing.assert_close(gradient(loss, values), gradient(whole.loss, values))
    for name, (total, weight) in whole.metrics.items():
        assert sum(part.metrics[name][0].item() for part in parts) == pytest.approx(total.item())
        assert sum(part.metrics[name][1].item() for part in parts) == weight.item()


@pytest.mark.parametrize("selected", [[2], []])
def test_rows_without_sampled_tokens_give_a_zero_loss_that_still_runs_backward(selected: list[int]) -> None:
    values, old, returns = numbers(MASK, 0, names=3)
    values.requires_grad_()
    sums = critic(values[selected], old[selected], returns[selected], MASK[selected])
    assert (sums.loss.item(), sums.weight.item()) == (0.0, 0.0)
    assert not gradient(sums.loss, values).any()


def test_explained_variance_follows_from_the_metrics() -> None:
    values, old, returns = numbers(MASK, 0, names=3)
    expected = 1 - (returns - values)[MASK].var(correction=0) / returns[MASK].var(correction=0)
    assert explained_variance(mean_metrics(critic(values, old, returns, MASK))) == pytest.approx(expected.item())


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_constant_returns() -> None:
    values, old, returns = numbers(MASK, 0, names=3)
    assert explained_variance(mean_metrics(critic(returns, old, returns, MASK))) == pytest.approx(1.0)
    constant = torch.full_like(returns, 0.1)
    assert explained_variance(mean_metrics(critic(values, old, constant, MASK))) == 0.0


def test_metrics_are_detached_and_in_float64() -> None:
    values, old, returns = (tensor.float() for tensor in numbers(MASK, 0, names=3))
    sums = critic(values.requires_grad_(), old, returns, MASK)
    tensors = [tensor for pair in sums.metrics.values() for tensor in pair]
    assert {(tensor.requires_grad, tensor.dtype) for tensor in tensors} == {(False, torch.float64)}


def test_a_negative_value_clip_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"value_clip \(-0.1\)"):
        critic(*(torch.zeros(1, 1) for _ in range(3)), torch.ones(1, 1, dtype=torch.bool), value_clip=-0.1)


# ---------------------------------------------------------------------------------------------------------- aggregation
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@EXAMPLES
@given(mask=masks())
def test_only_the_sequence_mean_weighs_a_token_by_the_length_of_its_response(
    aggregation: Aggregation, mask: Tensor
) -> None:
    lists = [[1 / len(row) if aggregation == "sequence_mean" else 1.0 for _ in row] for row in rows(mask, mask)]
    assert torch.equal(aggregation_weights(response_mask=mask, aggregation=aggregation), placed(lists, mask))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", (1 + 2 + 3 + 10) / 4),
        ("sequence_mean", ((1 + 2 + 3) / 3 + 10) / 2),
        ("sequence_sum", (1 + 2 + 3 + 10) / 2),
        ("constant", (1 + 2 + 3 + 10) / (2 * 8)),
    ],
)
def test_weights_and_total_give_the_mean_of_two_responses_by_hand(aggregation: Aggregation, expected: float) -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    losses = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    weights = aggregation_weights(response_mask=mask, aggregation=aggregation)
    total = aggregation_total(aggregation=aggregation, num_tokens=4, num_sequences=2, constant=8)
    assert ((weights * losses).sum() / total).item() == pytest.approx(expected)


def test_an_unknown_aggregation_and_a_length_of_nothing_are_errors() -> None:
    unknown = cast(Aggregation, "mean")
    with pytest.raises(ValueError, match=r"aggregation \('mean'\)"):
        aggregation_weights(response_mask=MASK, aggregation=unknown)
    with pytest.raises(ValueError, match=r"aggregation \('mean'\)"):
        aggregation_total(aggregation=unknown, num_tokens=1, num_sequences=1, constant=1)
    with pytest.raises(ValueError, match=r"constant \(0\)"):
        aggregation_total(aggregation="constant", num_tokens=1, num_sequences=1, constant=0)


# ------------------------------------------------------------------------------------- language modelling, preferences
@EXAMPLES
@given(mask=masks(), seed=seeds, outside=rubbish)
def test_language_modelling_loss_is_the_summed_negative_log_likelihood(mask: Tensor, seed: int, outside: float) -> None:
    (logprobs,) = numbers(mask, seed, outside=outside)
    sums = language_modelling_loss(logprobs=logprobs.requires_grad_(), mask=mask)
    expected = sum(reference.language_modelling(row) for row in rows(logprobs, mask))
    assert sums.loss.item() == pytest.approx(expected)
    assert sums.metrics["negative_log_likelihood"][0].item() == pytest.approx(expected)
    assert sums.weight.item() == mask.sum().item()
    assert torch.equal(gradient(sums.loss, logprobs), -mask.double())


@EXAMPLES
@given(pairs=st.integers(0, 6), seed=seeds, centering=st.sampled_from([0.0, 0.1]), cut=st.integers(0, 6))
def test_bradley_terry_loss_equals_a_loop_over_pairs_however_they_are_cut(
    pairs: int, seed: int, centering: float, cut: int
) -> None:
    tensors = numbers(torch.ones(pairs, dtype=torch.bool), seed, names=5, scale=3.0)
    chosen, rejected, margins = (tensor.requires_grad_() for tensor in tensors[:3])
    weights, probabilities = tensors[3].abs(), tensors[4].sigmoid()
    parts = [
        bradley_terry_loss(
            chosen_scores=chosen[half],
            rejected_scores=rejected[half],
            margins=margins.detach()[half],
            probabilities=probabilities[half],
            centering=centering,
            weights=weights[half],
        )
        for half in (slice(cut), slice(cut, None))
    ]
    lists = [tensor.tolist() for tensor in (rejected, margins, weights, probabilities)]

    def total(changed: list[list[float]]) -> float:
        every = zip(changed[0], *lists, strict=True)
        return sum(w * reference.bradley_terry_pair(c, r, m, centering, q) for c, r, m, w, q in every)

    loss = torch.stack([part.loss for part in parts]).sum()
    assert loss.item() == pytest.approx(total([chosen.tolist()]))
    assert sum(part.weight.item() for part in parts) == pytest.approx(sum(lists[2]))
    slope = reference.numerical_gradient(total, [chosen.tolist()])[0]
    assert gradient(loss, chosen).tolist() == pytest.approx(slope, rel=1e-5, abs=1e-6)


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


def test_a_soft_label_that_is_certain_has_the_loss_and_the_gradient_of_a_hard_one_bit_for_bit() -> None:
    chosen, rejected, margins = numbers(torch.ones(9, dtype=torch.bool), 3, names=3, scale=5.0)
    results = {}
    for name, sides, probabilities in (
        ("hard", (chosen, rejected), None),
        ("certain", (chosen, rejected), torch.ones(9)),
        ("turned", (rejected, chosen), torch.zeros(9)),
    ):
        first, second = (side.clone().requires_grad_() for side in sides)
        sums = bradley_terry_loss(
            chosen_scores=first, rejected_scores=second, margins=margins, probabilities=probabilities, centering=0.1
        )
        slopes = torch.autograd.grad(sums.loss, (first, second))
        results[name] = sums.loss, sums.metrics["accuracy"], slopes if name != "turned" else slopes[::-1]
    for name in ("certain", "turned"):
        torch.testing.assert_close(results[name], results["hard"], rtol=0, atol=0)


def test_a_soft_label_is_met_exactly_at_its_log_odds() -> None:
    lead = torch.tensor([math.log(3.0)], requires_grad=True)
    sums = bradley_terry_loss(chosen_scores=lead, rejected_scores=torch.zeros(1), probabilities=torch.tensor([0.75]))
    assert gradient(sums.loss, lead).item() == pytest.approx(0.0, abs=1e-7)
    assert sums.loss.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))  # its entropy


def test_accuracy_asks_what_a_soft_label_prefers_and_leaves_even_odds_out() -> None:
    sums = bradley_terry_loss(
        chosen_scores=torch.tensor([1.0, 1.0, 1.0, 0.0]),
        rejected_scores=torch.zeros(4),
        probabilities=torch.tensor([0.9, 0.2, 0.5, 0.7]),
    )
    right, counted = sums.metrics["accuracy"]
    assert (right.item(), counted.item()) == (1.5, 3.0)  # right, wrong, not asked, a tie


def test_probabilities_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probabilities \(2,\) must be \[P\]"):
        bradley_terry_loss(chosen_scores=torch.zeros(3), rejected_scores=torch.zeros(3), probabilities=torch.ones(2))


def test_bradley_terry_loss_stays_finite_for_scores_far_apart() -> None:
    sums = bradley_terry_loss(chosen_scores=torch.tensor([-1e4]), rejected_scores=torch.tensor([1e4]))
    assert sums.loss.item() == pytest.approx(2e4)


def test_a_negative_centering_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"centering \(-1\)"):
        bradley_terry_loss(chosen_scores=torch.zeros(1), rejected_scores=torch.zeros(1), centering=-1)


@EXAMPLES
@given(steps=st.integers(0, 6), seed=seeds, cut=st.integers(0, 6))
def test_step_label_loss_equals_a_loop_over_steps_however_they_are_cut(steps: int, seed: int, cut: int) -> None:
    rewards, drawn = numbers(torch.ones(steps, dtype=torch.bool), seed, names=2, scale=3.0)
    labels = drawn > 0
    rewards.requires_grad_()
    parts = [step_label_loss(rewards=rewards[half], labels=labels[half]) for half in (slice(cut), slice(cut, None))]

    def total(changed: list[list[float]]) -> float:
        return sum(reference.step_label(r, y) for r, y in zip(changed[0], labels.tolist(), strict=True))

    loss = torch.stack([part.loss for part in parts]).sum()
    assert loss.item() == pytest.approx(total([rewards.tolist()]))
    assert sum(part.weight.item() for part in parts) == steps
    slope = reference.numerical_gradient(total, [rewards.tolist()])[0]
    assert gradient(loss, rewards).tolist() == pytest.approx(slope, rel=1e-5, abs=1e-6)
    right = sum((r > 0) == y for r, y in zip(rewards.tolist(), labels.tolist(), strict=True))
    assert sum(part.metrics["accuracy"][0].item() for part in parts) == right


def test_labels_of_steps_that_are_no_bools_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be bools \[N\]"):
        step_label_loss(rewards=torch.zeros(2), labels=torch.ones(2))
