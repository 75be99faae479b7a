"""The learning rate as a function of the step."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_ray.algo.schedule import Decay, learning_rate_factor


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.8681981, 0.55, 0.2318019, 0.1]),
    ],
)
def test_the_factors_of_six_steps_by_hand(decay: Decay, expected: list[float]) -> None:
    factors = [
        learning_rate_factor(step=step, num_steps=6, warmup_steps=2, decay=decay, floor=0.1) for step in range(7)
    ]
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_factor_never_rises_after_the_warmup_and_stays_at_the_floor(decay: Decay) -> None:
    factors = [
        learning_rate_factor(step=step, num_steps=50, warmup_steps=5, decay=decay, floor=0.2) for step in range(4, 70)
    ]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0
    assert factors[46:] == pytest.approx([0.2] * 20)


def test_a_run_that_is_all_warmup_ends_at_the_peak() -> None:
    assert learning_rate_factor(step=9, num_steps=10, warmup_steps=10, decay="linear") == 1.0


@pytest.mark.parametrize(
    ("field", "value"), [("step", -1), ("warmup_steps", 11), ("floor", 1.5), ("decay", "exponential")]
)
def test_settings_out_of_range_are_errors(field: str, value: object) -> None:
    arguments: dict[str, Any] = {"step": 3, "num_steps": 10, "warmup_steps": 2, "decay": "linear", "floor": 0.0}
    with pytest.raises(ValueError, match=field):
        learning_rate_factor(**(arguments | {field: value}))
