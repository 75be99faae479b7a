"""How well a process reward model tells good steps of a response from bad ones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf_ray.metrics.report_data import AccuracyRow, CalibrationBin


class Labelled(Protocol):
    """A response whose steps have labels."""

    @property
    def index(self) -> int: ...

    @property
    def labels(self) -> tuple[bool, ...]: ...


@dataclass(frozen=True)
class LabelledStep:
    """``reward`` is raw, a log-odds: above 0 the model takes the step for good."""

    reward: float
    good: bool
    is_last: bool

    @property
    def correct(self) -> float:
        """1 where the model is right, one half where it does not know."""
        return 0.5 if self.reward == 0 else float((self.reward > 0) == self.good)


def labelled_steps(responses: Sequence[Labelled], rewards: Mapping[int, Sequence[float]]) -> list[LabelledStep]:
    """Every step with its reward; ``rewards`` are by the index of a response."""
    return [
        LabelledStep(reward, good, place == len(response.labels) - 1)
        for response in responses
        for place, (reward, good) in enumerate(zip(rewards[response.index], response.labels, strict=True))
    ]


def step_rows(steps: Sequence[LabelledStep]) -> tuple[AccuracyRow, ...]:
    """All steps first; then what a rule that reads nothing reaches, and the model on parts of the steps."""
    good = [step for step in steps if step.good]
    rows = (
        _row("process reward model, all steps", steps),
        AccuracyRow(
            "rule (every step is of the more frequent kind)", max(len(good), len(steps) - len(good)), len(steps)
        ),
        _row("good steps", good),
        _row("bad steps", [step for step in steps if not step.good]),
        _row("last steps", [step for step in steps if step.is_last]),
    )
    return tuple(row for row in rows if row.total)


def step_loss(steps: Sequence[LabelledStep]) -> float:
    """Mean cross-entropy of the labels in nats."""
    signed = [step.reward if step.good else -step.reward for step in steps]
    return sum(math.log1p(math.exp(-abs(x))) + max(-x, 0.0) for x in signed) / len(signed)


def step_calibration(steps: Sequence[LabelledStep], num_bins: int = 10) -> tuple[CalibrationBin, ...]:
    """The predicted probability that a step is good against the share that is."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for step in steps:
        predicted = 0.5 * (1 + math.tanh(step.reward / 2))  # the sigmoid, without overflow
        bins[min(int(predicted * num_bins), num_bins - 1)].append((predicted, step.good))
    return tuple(
        CalibrationBin(sum(p for p, _ in group) / len(group), sum(good for _, good in group), len(group))
        for _, group in sorted(bins.items())
    )


def _row(name: str, steps: Sequence[LabelledStep]) -> AccuracyRow:
    return AccuracyRow(name, sum(step.correct for step in steps), len(steps))
