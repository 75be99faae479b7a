"""What is known of every token of a rollout, and how strongly to colour it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_ray.experience_store import SavedExperience
from rlhf_ray.metrics.sinks import format_number
from rlhf_ray.records import FloatArray, Rollout, Score
from rlhf_ray.viewing.words import Piece


@dataclass(frozen=True)
class Saved:
    """A rollout with what was said of it. ``trained`` is the score that was trained on; None where it was left out.

    ``experience`` is what the trainer made of it, where that was kept; ``problem`` says why it cannot be read.
    """

    rollout: Rollout
    reference: FloatArray | None  # [R]
    score: Score | None
    trained: Score | None
    kl_coef: float
    experience: SavedExperience | None = None
    problem: str = ""


@dataclass(frozen=True)
class Signal:
    """A number for every token. ``edges`` are where the colours change, above and below 0."""

    key: str
    title: str
    note: str
    unit: str
    edges: tuple[float, ...]
    of: Callable[[Saved], FloatArray | None]


def log_ratio(saved: Saved) -> FloatArray | None:
    """By the trainer, which is what it is trained on; where that was not kept, by the engine that sampled."""
    if saved.experience is not None:
        own: FloatArray = saved.experience.old_logprobs - saved.experience.ref_logprobs
        return own
    if saved.reference is None:
        return None
    ratio: FloatArray = saved.rollout.rollout_logprobs - saved.reference
    return ratio


def kl_k3(saved: Saved) -> FloatArray | None:
    """Per token r - 1 - log r with r = reference / policy: never negative, its mean is the KL (Schulman 2020)."""
    ratio = log_ratio(saved)
    return None if ratio is None else np.expm1(np.clip(-ratio, -60, 60)) + ratio


def critic_value(saved: Saved) -> FloatArray | None:
    return None if saved.experience is None else saved.experience.values


def advantage(saved: Saved) -> FloatArray | None:
    return None if saved.experience is None else saved.experience.advantages


def engine_difference(saved: Saved) -> FloatArray | None:
    if saved.experience is None:
        return None
    difference: FloatArray = saved.experience.old_logprobs - saved.rollout.rollout_logprobs
    return difference


def surprise(saved: Saved) -> FloatArray | None:
    negative: FloatArray = -saved.rollout.rollout_logprobs
    return negative


def kl_penalty(saved: Saved) -> FloatArray | None:
    """What the token costs where the KL is a part of the reward (``ppo.kl.placement=reward``, estimator k1)."""
    ratio = log_ratio(saved)
    return None if ratio is None else -saved.kl_coef * ratio


def age(saved: Saved) -> FloatArray | None:
    versions = saved.rollout.policy_versions
    if not len(versions) or versions.min() == versions.max():
        return None
    ages: FloatArray = (versions.max() - versions).astype(np.float32)
    return ages


def step_rewards(saved: Saved) -> FloatArray | None:
    if saved.score is None or not saved.score.step_rewards:
        return None
    rewards = np.zeros(len(saved.rollout.response_ids), dtype=np.float32)
    for place, value in saved.score.step_rewards:
        rewards[place] += value
    return rewards


SIGNALS = (
    Signal(
        "ratio",
        "Log-ratio to the reference (KL)",
        "log policy - log reference of the sampled token; summed over a response it is the response's KL. Above 0 the "
        "policy says it more readily than the reference.",
        "nats",
        (0.05, 0.2, 0.5, 1.0, 2.0),
        log_ratio,
    ),
    Signal(
        "kl",
        "KL per token (k3)",
        "r - 1 - log r with r = reference / policy: an estimate of the token's KL that is never negative.",
        "nats",
        (0.01, 0.05, 0.2, 0.5, 1.0),
        kl_k3,
    ),
    Signal(
        "value",
        "Value",
        "What the critic expected from here on, before the token was sampled.",
        "reward",
        (0.1, 0.25, 0.5, 1.0, 2.0),
        critic_value,
    ),
    Signal(
        "advantage",
        "Advantage",
        "How much better than expected the token was, as it was trained on (whitened over the step where the run does "
        "so): above 0 it is made likelier.",
        "",
        (0.25, 0.5, 1.0, 1.5, 2.5),
        advantage,
    ),
    Signal(
        "surprise",
        "Surprise",
        "-log policy of the sampled token under the engine's weights: how unlikely it was.",
        "nats",
        (0.1, 0.5, 1.0, 2.0, 4.0),
        surprise,
    ),
    Signal(
        "engine",
        "Trainer - engine",
        "The log-probability by the trainer before the step's first update, less the engine's when it sampled: 0 but "
        "for rounding where both held the same weights.",
        "nats",
        (0.001, 0.01, 0.05, 0.2, 1.0),
        engine_difference,
    ),
    Signal(
        "penalty",
        "KL penalty",
        "-ppo.kl.coef times the log-ratio: what the token earns or costs where the KL is in the reward.",
        "reward",
        (0.005, 0.02, 0.05, 0.1, 0.2),
        kl_penalty,
    ),
    Signal(
        "steps",
        "Rewards on the way",
        "What reward sources gave at this token, before the end (a process reward model).",
        "reward",
        (0.05, 0.2, 0.5, 1.0, 2.0),
        step_rewards,
    ),
    Signal(
        "age",
        "Age of the weights",
        "How many weight syncs the token's weights were behind the newest of the response.",
        "syncs",
        (1.0, 2.0, 3.0, 4.0, 5.0),
        age,
    ),
)
MEANS = ("value", "advantage")  # of several tokens in one piece; others add up
NOT_KEPT = (
    "Values, advantages and the trainer's log-probabilities are not here: the rollout was not trained on (yet), or the "
    "run is of an earlier version."
)


@dataclass(frozen=True)
class Token:
    """A piece of a response with its colour: ``level`` from -5 to 5, and its number as text."""

    text: str
    level: int
    said: str
    is_special: bool

    @property
    def tone(self) -> str:
        return f"p{self.level}" if self.level > 0 else f"n{-self.level}" if self.level < 0 else "z"


def signals_of(saved: Saved) -> dict[str, FloatArray]:
    """The signals that this rollout has, by key."""
    found = {signal.key: signal.of(saved) for signal in SIGNALS}
    return {key: values for key, values in found.items() if values is not None}


def level(value: float, edges: Sequence[float]) -> int:
    """How many of the edges the value reaches, with its sign; 0 for what is no number."""
    if math.isnan(value):
        return 0
    reached = sum(abs(value) >= edge for edge in edges)
    return reached if value >= 0 else -reached


def of_piece(piece: Piece, values: FloatArray, key: str) -> float:
    """A piece's number: the sum of its tokens', or their mean for what does not add up."""
    own = values[piece.start : piece.end]
    return float(np.mean(own) if key in MEANS else np.sum(own))


def coloured(pieces: Sequence[Piece], values: FloatArray, signal: Signal) -> list[Token]:
    """The pieces in colour."""
    made = []
    for piece in pieces:
        value = of_piece(piece, values, signal.key)
        said = f"{format_number(value)} {signal.unit}".strip()
        made.append(Token(piece.text, level(value, signal.edges), said, piece.is_special))
    return made


def table(pieces: Sequence[Piece], signals: Mapping[str, FloatArray]) -> list[tuple[str, list[str]]]:
    """Every piece with all of its numbers, for those who read rather than look."""
    return [
        (piece.text, [format_number(of_piece(piece, values, key)) for key, values in signals.items()])
        for piece in pieces
    ]
