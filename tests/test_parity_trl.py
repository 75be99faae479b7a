"""The comparison's own arithmetic: what counts as a difference, and what the table says of it. TRL is not needed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks import parity_trl_inputs
from benchmarks.parity_trl import TOLERANCE, compared, failed, line, table
from benchmarks.parity_trl_ours import Row


def test_the_difference_is_the_largest_and_the_scale_that_of_the_larger_side() -> None:
    assert compared(torch.tensor([1.0, -3.0]), torch.tensor([1.5, -3.25])) == (0.5, 3.25, 2)


def test_numbers_outside_the_mask_are_not_compared() -> None:
    ours, theirs = torch.tensor([1.0, math.nan, 2.0]), torch.tensor([1.0, 7.0, 2.5])
    assert compared(ours, theirs, torch.tensor([True, False, True])) == (0.5, 2.5, 2)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_number_that_is_not_finite_fails_even_on_both_sides(wrong: float) -> None:
    row = line(Row("q", "k", torch.tensor([wrong])), torch.tensor([wrong]), "f", "1.0")
    assert row["max_difference"] == math.inf
    assert failed([row]) == [row]


def test_shapes_must_agree_and_a_mask_must_leave_something() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) must have the shape of TRL's answer \(1,\)"):
        compared(torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match="nothing to compare"):
        compared(torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.bool))


def test_what_is_taken_of_an_answer_is_what_is_compared() -> None:
    row = Row("q", "k", torch.tensor([3.0]), taken=lambda theirs: theirs.sum(-1))
    assert line(row, torch.tensor([[1.0, 2.0]]), "f", "1.0")["max_difference"] == 0


def test_a_difference_beyond_the_tolerance_is_counted_in_the_table() -> None:
    near, far = (
        line(Row(name, "k", torch.tensor([100.0 + gap])), torch.tensor([100.0]), "f", "1.0")
        for name, gap in (("near", 50 * TOLERANCE), ("far", 1.0))
    )
    assert failed([near, far]) == [far]
    record: dict[str, Any] = {
        "rows": [near, far],
        "command": "c",
        "note": "",
        "machine": {"cores": 1, "processor": "p", "memory_gib": 1, "gpu": "none"},
        "tolerance": TOLERANCE,
        "not_compared": ["reason"],
        "versions": {"here": {"torch": "2"}},
    }
    text = table(record)
    assert "1 of 2 quantities agree to 2e-05 of their scale." in text
    assert "| far | `f` | 1.0 | 1.0e+00 | 101 |  |" in text


def test_both_sides_get_the_same_tensors_every_time() -> None:
    first, second = parity_trl_inputs.inputs(seed=0), parity_trl_inputs.inputs(seed=0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not first["policy.response_mask"][0].all()  # a gap
    assert first["ranking.chosen"][0] == first["ranking.rejected"][0]  # a tie
