"""Good steps told from bad ones, checked against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.metrics.steps import LabelledStep, labelled_steps, step_calibration, step_loss, step_rows
from rlhf_ray.stages.work import LabelledSteps

EMPTY = TokenSequence(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_))
STEPS = [
    LabelledStep(2.0, True, False),
    LabelledStep(-1.0, True, True),
    LabelledStep(0.0, True, True),
    LabelledStep(-3.0, False, True),
]


def test_every_step_has_its_own_reward_and_knows_whether_it_is_the_last() -> None:
    responses = [LabelledSteps(1, EMPTY, (True, False)), LabelledSteps(0, EMPTY, (True,))]
    assert labelled_steps(responses, {0: (0.5,), 1: (1.5, -2.0)}) == [
        LabelledStep(1.5, True, False),
        LabelledStep(-2.0, False, True),
        LabelledStep(0.5, True, True),
    ]


def test_rows_stand_beside_the_rule_that_reads_nothing() -> None:
    assert [(row.name, row.correct, row.total) for row in step_rows(STEPS)] == [
        ("process reward model, all steps", 2.5, 4),
        ("rule (every step is of the more frequent kind)", 3, 4),
        ("good steps", 1.5, 3),
        ("bad steps", 1.0, 1),
        ("last steps", 1.5, 3),
    ]


def test_the_loss_is_the_cross_entropy_and_does_not_overflow() -> None:
    def entropy(x: float) -> float:
        return -math.log(1 / (1 + math.exp(-x)))

    assert step_loss(STEPS) == pytest.approx((entropy(2) + entropy(-1) + entropy(0) + entropy(3)) / 4)
    assert step_loss([LabelledStep(1e4, False, True)]) == pytest.approx(1e4)


def test_the_bins_hold_the_predicted_probability_and_the_share_that_is_good() -> None:
    at = math.log(0.83 / 0.17)
    low, high = step_calibration(
        [LabelledStep(at, True, True), LabelledStep(at, False, True), LabelledStep(-at, False, True)]
    )
    assert (low.predicted, low.agreed, low.total) == (pytest.approx(0.17), 0, 1)
    assert (high.predicted, high.agreed, high.total) == (pytest.approx(0.83), 1, 2)
