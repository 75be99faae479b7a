"""What the heads of a reward model are called, how they add up, and on which scale they are served.

One head judges the whole. Several judge an axis each (helpful, honest, harmless); the whole is then their weighted sum,
which is also what a ranking of the whole trains. A checkpoint keeps all of it in its configuration: the axes as its
labels, ``score_weights``, and the mean and deviation of the raw scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlhf_ray.errors import ConfigError

WHOLE = ""  # the axis of a ranking of the whole
LEAST_DEVIATION = 1e-6

Raw = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heads:
    """``axes`` are empty where there is one head, of the whole; ``weights`` has one number a head."""

    axes: tuple[str, ...] = ()
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.weights) != max(1, len(self.axes)):
            raise ValueError(f"weights {self.weights} must be one a head, of {max(1, len(self.axes))}")

    @property
    def num_heads(self) -> int:
        return len(self.weights)

    def mix(self, axis: str) -> tuple[float, ...]:
        """What each head counts for a score of ``axis``: it alone, or for the whole all of them by weight."""
        if axis == WHOLE:
            return self.weights
        return tuple(float(name == axis) for name in self.axes)

    def score(self, raw: Raw, axis: str = WHOLE) -> Raw:
        """The scores [...] of ``axis`` from those of all heads [..., H]."""
        score: Raw = raw @ np.array(self.mix(axis))
        return score


ONE_HEAD = Heads()


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of raw scores on training responses, by axis, of the whole under ``WHOLE``."""

    means: Mapping[str, float]
    deviations: Mapping[str, float]

    @classmethod
    def measured(cls, heads: Heads, raw: Raw) -> Scale:
        """That of the responses whose raw scores are ``raw`` [N, H]."""
        scores = {axis: heads.score(raw, axis) for axis in (WHOLE, *heads.axes)}
        return cls(
            {axis: float(own.mean()) for axis, own in scores.items()},
            {axis: float(max(own.std(), LEAST_DEVIATION)) for axis, own in scores.items()},
        )

    @classmethod
    def none(cls, heads: Heads) -> Scale:
        """Raw scores as they are."""
        axes = (WHOLE, *heads.axes)
        return cls(dict.fromkeys(axes, 0.0), dict.fromkeys(axes, 1.0))

    def normalised(self, scores: Raw, axis: str = WHOLE) -> Raw:
        """Scores of ``axis`` [...] with mean 0 and deviation 1 on the responses that were measured."""
        normal: Raw = (scores - self.means[axis]) / self.deviations[axis]
        return normal


# ----------------------------------------------------------------------------------------------------------- checkpoint
def checkpoint_settings(heads: Heads, scale: Scale) -> dict[str, Any]:
    """What a checkpoint's configuration says of its heads; :func:`read_heads` reads it."""
    if not heads.axes:
        return {"score_mean": scale.means[WHOLE], "score_std": scale.deviations[WHOLE]}
    return {
        "id2label": dict(enumerate(heads.axes)),
        "label2id": {axis: place for place, axis in enumerate(heads.axes)},
        "score_weights": list(heads.weights),
        "score_mean": [scale.means[axis] for axis in heads.axes],
        "score_std": [scale.deviations[axis] for axis in heads.axes],
        "total_mean": scale.means[WHOLE],
        "total_std": scale.deviations[WHOLE],
    }


def read_heads(config: Mapping[str, Any], *, path: str) -> tuple[Heads, Scale]:
    """Heads and scale of a checkpoint with the configuration ``config``; one that was never measured has 0 and 1.

    Raises ConfigError for several heads of which the checkpoint at ``path`` does not say how they add up.
    """
    labels = {int(place): str(name) for place, name in (config.get("id2label") or {0: WHOLE}).items()}
    if len(labels) == 1:
        mean, deviation = config.get("score_mean", 0.0), config.get("score_std", 1.0)
        return Heads(), Scale({WHOLE: float(mean)}, {WHOLE: float(deviation)})
    if "score_weights" not in config:
        raise ConfigError(
            "path",
            path,
            f"has {len(labels)} heads and no score_weights to say how they add up",
            "give a reward model with one head, or one that was trained here with reward_model.axes",
        )
    axes = tuple(labels[place] for place in sorted(labels))
    means = dict(zip(axes, config["score_mean"], strict=True)) | {WHOLE: config["total_mean"]}
    deviations = dict(zip(axes, config["score_std"], strict=True)) | {WHOLE: config["total_std"]}
    return Heads(axes, tuple(config["score_weights"])), Scale(means, deviations)
