"""Verbosity: how much of a score is length, and who wins once length is taken out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

NOTHING_LEFT = 1e-9  # of a deviation: what rounding leaves where the controls explain all of it
RIDGE = 1e-2  # keeps the weights finite where every win, or every longer response, is of one side
LONGEST_STEP = 1.0
MAX_ITERATIONS = 200


def residuals(values: Doubles, controls: Doubles) -> Doubles:
    """What is left of ``values`` [N] once a constant and ``controls`` [N, K] have explained what they linearly can."""
    design = np.column_stack([np.ones(len(values)), controls])
    weights, *_ = np.linalg.lstsq(design, values, rcond=None)
    left: Doubles = values - design @ weights
    return left


def partial_correlation(first: Doubles, second: Doubles, controls: Doubles) -> float:
    """Return the correlation of ``first`` and ``second`` [N] given ``controls`` [N, K], in [-1, 1].

    It is Pearson's, of the residuals of both on the controls (Yule 1907). 0 where the controls, or a constant, explain
    one of the two whole: then nothing of it is left to go along with the other.

    Raises:
        ValueError: the three have different lengths.
    """
    if not len(first) == len(second) == len(controls):
        raise ValueError(f"lengths must be equal, got {len(first)}, {len(second)} and {len(controls)}")
    if len(first) < 3:
        return 0.0
    left, right = residuals(first, controls), residuals(second, controls)
    norms = float(np.linalg.norm(left)), float(np.linalg.norm(right))
    wholes = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    if any(norm <= NOTHING_LEFT * max(whole, 1.0) for norm, whole in zip(norms, wholes, strict=True)):
        return 0.0
    return float(np.clip(left @ right / (norms[0] * norms[1]), -1.0, 1.0))


def explained_by_length(scores: Doubles, lengths: Doubles) -> float:
    """Return the share of the scores' variance that a line over the lengths explains (r squared), in [0, 1]."""
    return partial_correlation(scores, lengths, np.empty((len(scores), 0))) ** 2


def indicators(labels: Sequence[str]) -> Doubles:
    """Return a column of 0 and 1 for each label but the first [N, K - 1]: prompts' kinds as controls."""
    names = sorted(set(labels))[1:]
    return np.array([[float(label == name) for name in names] for label in labels]).reshape(len(labels), len(names))


def length_controlled_win_rate(wins: Doubles, length_differences: Doubles) -> float:
    """Return the share of prompts that would be won by a response of the same length, in [0, 1].

    ``wins`` [N] are 1, 0 or, for a tie, 1/2; ``length_differences`` [N] are own length minus the other's. A logistic
    regression logit P(win) = theta + phi tanh(difference / deviation of the differences) is fitted, and the answer is
    sigmoid(theta): the prediction at equal lengths (Dubois et al. 2024, Length-Controlled AlpacaEval, section 3). Its
    term for how hard an instruction is needs many models, and is left out. NaN for no prompts.

    Raises:
        ValueError: the two have different lengths, or a win lies outside [0, 1].
    """
    if len(wins) != len(length_differences):
        raise ValueError(f"wins and length differences must match, got {len(wins)} and {len(length_differences)}")
    if len(wins) == 0:
        return float("nan")
    if not bool(((wins >= 0) & (wins <= 1)).all()):
        raise ValueError("every win must lie between 0 and 1")
    deviation = float(np.std(length_differences))
    shape = np.tanh(length_differences / deviation) if deviation > 0 else np.zeros(len(wins))
    theta = float(_logistic_weights(np.column_stack([np.ones(len(wins)), shape]), wins)[0])
    return float(1.0 / (1.0 + np.exp(-theta)))


def _logistic_weights(design: Doubles, targets: Doubles) -> Doubles:
    """The weights [K] of a logistic regression with a little ridge, by Newton's method with bounded steps."""
    weights = np.zeros(design.shape[1])
    for _ in range(MAX_ITERATIONS):
        chances = 1.0 / (1.0 + np.exp(-design @ weights))
        gradient = design.T @ (targets - chances) - RIDGE * weights
        curvature = design.T @ (design * (chances * (1.0 - chances))[:, None]) + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        size = float(np.linalg.norm(step))
        weights = weights + step * min(1.0, LONGEST_STEP / max(size, 1e-12))
        if size < 1e-10:
            break
    return weights
