"""Masked statistics against the statistics module on the selected numbers."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algo.masked import masked_mean, masked_sum, masked_var, mean_and_variance, moments, whiten
from tests.algo import reference
from tests.algo.ragged import EXAMPLES, flat, masks, numbers, rows, rubbish, seeds


@pytest.fixture
def ragged() -> tuple[Tensor, Tensor, list[float]]:
    """Values [3, 7] with NaN outside the mask, the mask, and the values inside it."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 7, generator=generator) * 3 + 5
    mask = torch.arange(7) < torch.tensor([[7], [1], [4]])
    return torch.where(mask, values, torch.nan), mask, values[mask].tolist()


def test_masked_sum_mean_and_variance_equal_those_of_the_selected_numbers(
    ragged: tuple[Tensor, Tensor, list[float]],
) -> None:
    values, mask, selected = ragged
    assert masked_sum(values=values, mask=mask).item() == pytest.approx(sum(selected), rel=1e-6)
    assert masked_mean(values=values, mask=mask).item() == pytest.approx(statistics.mean(selected), rel=1e-6)
    assert masked_var(values=values, mask=mask).item() == pytest.approx(statistics.variance(selected), rel=1e-5)


def test_masked_mean_over_a_dimension_divides_each_row_by_its_own_count() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert masked_mean(values=values, mask=mask, dim=-1).tolist() == [2.0, 4.0, 0.0]


def test_masked_sum_sends_no_gradient_outside_the_mask() -> None:
    values = torch.tensor([1.0, torch.nan, 3.0], requires_grad=True)
    masked_sum(values=values, mask=torch.tensor([True, False, True])).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0, 1.0]


def test_moments_of_any_split_add_up_to_the_moments_of_the_whole(ragged: tuple[Tensor, Tensor, list[float]]) -> None:
    values, mask, selected = ragged
    parts = [moments(values=values[:, columns], mask=mask[:, columns]) for columns in ([0], [1, 2, 3], [4, 5, 6])]
    mean, variance = mean_and_variance(torch.stack(parts).sum(0))
    assert mean.item() == pytest.approx(statistics.mean(selected), rel=1e-12)
    assert variance.item() == pytest.approx(statistics.variance(selected), rel=1e-9)


def test_moments_keep_the_variance_of_numbers_far_from_zero() -> None:
    values = torch.tensor([1000.0, 1000.5, 1001.0])
    _, variance = mean_and_variance(moments(values=values, mask=torch.ones(3, dtype=torch.bool)))
    assert variance.item() == pytest.approx(0.25, rel=1e-9)


@pytest.mark.parametrize(("numbers", "mean"), [([], 0.0), ([3.0], 3.0)])
def test_fewer_than_two_values_have_no_variance(numbers: list[float], mean: float) -> None:
    values = torch.tensor(numbers)
    sums = moments(values=values, mask=torch.ones_like(values, dtype=torch.bool))
    assert [statistic.item() for statistic in mean_and_variance(sums)] == [mean, 0.0]


def test_whitened_values_have_mean_zero_and_unit_variance(ragged: tuple[Tensor, Tensor, list[float]]) -> None:
    values, mask, _ = ragged
    mean, variance = mean_and_variance(moments(values=values, mask=mask))
    whitened = whiten(values=values, mask=mask, mean=mean, variance=variance)
    assert whitened[mask].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert whitened[mask].var().item() == pytest.approx(1.0, rel=1e-5)
    assert not whitened[~mask].any()


@EXAMPLES
@given(mask=masks(), seed=seeds, outside=rubbish, shift_mean=st.booleans())
def test_whitening_equals_the_statistics_module_on_the_selected_numbers(
    mask: Tensor, seed: int, outside: float, shift_mean: bool
) -> None:
    (values,) = numbers(mask, seed, outside=outside)
    mean, variance = mean_and_variance(moments(values=values, mask=mask))
    found = whiten(values=values, mask=mask, mean=mean, variance=variance, shift_mean=shift_mean)
    selected = flat(rows(values, mask))
    expected = reference.whiten(selected, shift_mean=shift_mean) if selected else []
    assert flat(rows(found, mask)) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert not found[~mask].any()


def test_whitening_can_keep_the_mean(ragged: tuple[Tensor, Tensor, list[float]]) -> None:
    values, mask, selected = ragged
    mean, variance = mean_and_variance(moments(values=values, mask=mask))
    whitened = whiten(values=values, mask=mask, mean=mean, variance=variance, shift_mean=False)
    assert whitened[mask].mean().item() == pytest.approx(statistics.mean(selected), rel=1e-6)
    assert not whitened[~mask].any()


def test_whitening_equal_values_gives_zeros_and_not_infinity() -> None:
    values, mask = torch.full((4,), 2.0), torch.ones(4, dtype=torch.bool)
    mean, variance = mean_and_variance(moments(values=values, mask=mask))
    assert whiten(values=values, mask=mask, mean=mean, variance=variance).tolist() == [0.0] * 4
