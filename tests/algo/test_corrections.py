"""Off-policy weights against loops over Python floats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algo.corrections import Level, Mode, RolloutWeights, effective_sample_size, rollout_weights
from tests.algo import reference
from tests.algo.ragged import EXAMPLES, flat, masks, numbers, placed, rows, rubbish, seeds, widened

LEVELS: tuple[Level, ...] = ("token", "sequence", "geometric")
MODES: tuple[Mode, ...] = ("truncate", "mask")
every_kind = pytest.mark.parametrize(("level", "mode"), [(level, mode) for level in LEVELS for mode in MODES])


def weights_of(old: Tensor, rollout: Tensor, mask: Tensor, level: Level, mode: Mode) -> RolloutWeights:
    return rollout_weights(
        old_logprobs=old, rollout_logprobs=rollout, response_mask=mask, level=level, mode=mode, low=0.5, high=2.0
    )


def means(found: RolloutWeights) -> dict[str, float]:
    return {name: (total / count).item() for name, (total, count) in found.sums.items()}


@pytest.mark.parametrize(
    ("level", "mode", "expected"),
    [
        ("token", "truncate", [2.0, 0.0, 0.25, 1.5]),  # 4, 1/4 and 1.5: the first is cut to 2
        ("token", "mask", [0.0, 0.0, 0.0, 1.5]),
        ("sequence", "truncate", [1.5, 0.0, 1.5, 1.5]),  # their product
        ("geometric", "mask", [1.5 ** (1 / 3), 0.0, 1.5 ** (1 / 3), 1.5 ** (1 / 3)]),
    ],
)
def test_weights_of_three_tokens_by_hand(level: Level, mode: Mode, expected: list[float]) -> None:
    found = weights_of(
        old=torch.tensor([[4.0, torch.nan, 0.25, 1.5]]).log(),
        rollout=torch.zeros(1, 4),
        mask=torch.tensor([[True, False, True, True]]),
        level=level,
        mode=mode,
    )
    assert found.weights.tolist() == [pytest.approx(expected)]


@every_kind
@EXAMPLES
@given(mask=masks(), seed=seeds, outside=rubbish, scale=st.sampled_from([0.3, 2.0, 40.0]))
def test_weights_and_their_statistics_equal_a_loop_over_tokens_whatever_stands_outside(
    level: Level, mode: Mode, mask: Tensor, seed: int, outside: float, scale: float
) -> None:
    old, rollout = numbers(mask, seed, names=2, scale=scale, outside=outside)
    raw = [reference.raw_weights(o, r, level) for o, r in zip(rows(old, mask), rows(rollout, mask), strict=True)]
    cut = [[reference.bounded_weight(w, mode, 0.5, 2.0) for w in row] for row in raw]
    found = weights_of(old, rollout, mask, level, mode)
    torch.testing.assert_close(found.weights, placed(cut, mask))
    before, after = flat(raw), flat(cut)
    assert {name: total.item() for name, (total, _) in found.sums.items()} == {
        "weight_mean": pytest.approx(sum(before)),
        "weights_squared": pytest.approx(sum(w * w for w in before)),
        "cut_fraction": sum(w != kept for w, kept in zip(before, after, strict=True)),
        "above_2": sum(w > 2 for w in before),
        "above_10": sum(w > 10 for w in before),
    }
    assert {count.item() for _, count in found.sums.values()} == {len(before)}
    assert found.maxima["weight_max"].item() == pytest.approx(max(before, default=0.0))


@every_kind
def test_on_policy_every_weight_is_exactly_one(level: Level, mode: Mode) -> None:
    mask = torch.tensor([[True, True, False, True], [False, False, False, False]])
    (logprobs,) = numbers(mask, 0)
    found = weights_of(logprobs, logprobs.clone(), mask, level, mode)
    assert torch.equal(found.weights, mask.double())
    assert means(found) == {
        "weight_mean": 1.0,
        "weights_squared": 1.0,
        "cut_fraction": 0.0,
        "above_2": 0.0,
        "above_10": 0.0,
    }


@every_kind
@EXAMPLES
@given(mask=masks(), seed=seeds, columns=st.integers(1, 5), cut=st.integers(0, 5))
def test_neither_padding_nor_a_cut_into_micro_batches_changes_weights_or_sums(
    level: Level, mode: Mode, mask: Tensor, seed: int, columns: int, cut: int
) -> None:
    old, rollout = numbers(mask, seed, names=2)
    whole = weights_of(old, rollout, mask, level, mode)
    wide = [widened(tensor, columns) for tensor in (old, rollout, mask)]
    parts = [weights_of(*(t[half] for t in wide), level, mode) for half in (slice(cut), slice(cut, None))]
    joined = torch.cat([part.weights for part in parts])
    torch.testing.assert_close(joined[:, : mask.shape[1]], whole.weights)
    assert not joined[:, mask.shape[1] :].any()
    for name, (total, count) in whole.sums.items():
        assert sum(part.sums[name][0].item() for part in parts) == pytest.approx(total.item())
        assert sum(part.sums[name][1].item() for part in parts) == count.item()
    assert max(part.maxima["weight_max"].item() for part in parts) == pytest.approx(whole.maxima["weight_max"].item())


@pytest.mark.parametrize("level", LEVELS)
def test_in_float32_not_a_bit_of_a_weight_depends_on_how_far_its_row_is_padded(level: Level) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(100, 300, generator=generator) < 0.8
    old, rollout = (0.1 * torch.randn(100, 300, generator=generator) for _ in range(2))
    wide = [widened(tensor, 37) for tensor in (old, rollout, mask)]
    padded = weights_of(wide[0], wide[1], wide[2], level, "truncate").weights
    assert torch.equal(padded[:, :300], weights_of(old, rollout, mask, level, "truncate").weights)


@every_kind
def test_a_ratio_that_would_overflow_is_cut_and_one_that_is_no_number_stays_visible(level: Level, mode: Mode) -> None:
    mask = torch.ones(3, 1, dtype=torch.bool)
    old, rollout = torch.tensor([[0.0], [-1000.0], [torch.nan]]), torch.tensor([[-1000.0], [0.0], [0.0]])
    found = weights_of(old, rollout, mask, level, mode)
    assert found.weights[:2].isfinite().all()
    assert found.weights[2].isnan().all()
    assert weights_of(old[:2], rollout[:2], mask[:2], level, mode).maxima["weight_max"] == pytest.approx(math.exp(20))


def test_weights_are_constants_in_float32_or_better() -> None:
    logprobs = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    found = weights_of(logprobs, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), "token", "truncate")
    assert (found.weights.requires_grad, found.weights.dtype) == (False, torch.float32)
    tensors = [*found.maxima.values(), *(tensor for pair in found.sums.values() for tensor in pair)]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}


@EXAMPLES
@given(weights=st.lists(st.floats(0.01, 100), min_size=1))
def test_the_effective_sample_size_follows_from_the_sums_and_lies_in_its_range(weights: list[float]) -> None:
    found = effective_sample_size(total=sum(weights), squares=sum(w * w for w in weights), count=len(weights))
    assert found == pytest.approx(reference.effective_sample_size(weights))
    assert 1 / len(weights) - 1e-9 <= found <= 1 + 1e-9


def test_the_effective_sample_size_of_equal_weights_is_one_and_of_none_is_zero() -> None:
    assert effective_sample_size(total=6.0, squares=12.0, count=3) == 1.0
    assert effective_sample_size(total=3.0, squares=9.0, count=3) == pytest.approx(1 / 3)  # one of three counts
    assert effective_sample_size(total=0.0, squares=0.0, count=0) == 0.0
    assert effective_sample_size(total=0.0, squares=0.0, count=4) == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "row"}, r"level \('row'\)"),
        ({"mode": "clip"}, r"mode \('clip'\)"),
        ({"low": 2.0}, r"low \(2.0\)"),
        ({"low": -0.1}, r"low \(-0.1\)"),
    ],
)
def test_settings_out_of_range_are_errors(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {"level": "token", "mode": "mask", "low": 0.5, "high": 2.0}
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=message):
        rollout_weights(old_logprobs=zeros, rollout_logprobs=zeros, response_mask=zeros.bool(), **(arguments | changes))
