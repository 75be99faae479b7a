"""Chunked log-probabilities and entropies against whole softmaxes in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_ray.algo.logprobs import entropy, token_logprobs


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(13, 29, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(0, 29, (13,), generator=torch.Generator().manual_seed(1))


def test_logprob_of_two_tokens_by_hand() -> None:
    # At temperature 2 the logits (2 log 3, 0) are (log 3, 0): probabilities 3/4 and 1/4.
    logits = torch.tensor([[2 * math.log(3), 0.0]]).expand(2, 2)
    logprobs = token_logprobs(logits=logits, targets=torch.tensor([0, 1]), temperature=2.0)
    assert logprobs.exp().tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_logprobs_and_their_gradient_equal_log_softmax_for_any_chunk(
    logits: Tensor, targets: Tensor, chunk: int, temperature: float
) -> None:
    upstream = torch.linspace(-1, 1, 13, dtype=torch.float64)
    ours, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    logprobs = token_logprobs(logits=ours, targets=targets, temperature=temperature, chunk=chunk)
    expected = (reference / temperature).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    logprobs.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(ours.grad, reference.grad)


def test_half_precision_logits_are_scored_in_float32_and_their_gradient_keeps_their_type(
    logits: Tensor, targets: Tensor
) -> None:
    half = logits.bfloat16().requires_grad_()
    logprobs = token_logprobs(logits=half, targets=targets, temperature=1.0, chunk=5)
    expected = half.detach().float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    assert logprobs.dtype is torch.float32
    torch.testing.assert_close(logprobs.detach(), expected)
    logprobs.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype is torch.bfloat16


def test_backward_saves_no_second_copy_of_the_logits(logits: Tensor, targets: Tensor) -> None:
    saved: list[int] = []
    half = logits.bfloat16().requires_grad_()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() != half.data_ptr():
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(logits=half, targets=targets, temperature=1.0)
    assert max(saved) == 13  # the targets and the normalisers, [N] each


def test_logprobs_stay_finite_for_huge_logits() -> None:
    logits = torch.tensor([[1e4, 0.0]])
    assert token_logprobs(logits=logits, targets=torch.tensor([1]), temperature=1.0).item() == -1e4


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_entropy_equals_its_definition_for_any_chunk(logits: Tensor, chunk: int) -> None:
    probabilities = (logits / 1.3).softmax(-1).tolist()
    expected = [-sum(p * math.log(p) for p in row) for row in probabilities]
    assert entropy(logits=logits, temperature=1.3, chunk=chunk).tolist() == pytest.approx(expected)


def test_entropy_of_a_uniform_choice_is_the_log_of_its_size_and_forbidden_tokens_add_nothing() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, -torch.inf]], requires_grad=True)
    value = entropy(logits=logits)
    assert value.item() == pytest.approx(math.log(3))
    value.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [pytest.approx([0.0] * 4, abs=1e-6)]


def test_no_tokens_have_no_logprobs_and_no_entropy() -> None:
    nothing = torch.zeros(0, 5)
    assert token_logprobs(logits=nothing, targets=torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert entropy(logits=nothing).shape == (0,)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_an_error(logits: Tensor, targets: Tensor, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(logits=logits, targets=targets, temperature=temperature)


def test_logits_that_are_not_flattened_are_an_error(logits: Tensor, targets: Tensor) -> None:
    with pytest.raises(ValueError, match="flatten"):
        token_logprobs(logits=logits[None], targets=targets)
    with pytest.raises(ValueError, match="targets"):
        token_logprobs(logits=logits, targets=targets[:5])
