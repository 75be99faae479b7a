"""Which member of the family is trained: advantages, surrogate, KL, off-policy correction, filtering, contracts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive

Estimator: TypeAlias = Literal[
    "gae", "grpo", "dr_grpo", "rloo", "opo", "remax", "reinforce_pp", "reinforce_pp_baseline"
]
Aggregation: TypeAlias = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]

# Estimators that compare the responses to one prompt with each other.
GROUPED: frozenset[str] = frozenset({"grpo", "dr_grpo", "rloo", "opo", "reinforce_pp_baseline"})
# Vocabularies of this size or less may have their whole distributions sent from the reference to the trainer.
MAX_EXACT_KL_VOCABULARY = 8192
# Estimators whose advantages are whitened over the step unless `ppo.whiten_advantages` says otherwise.
WHITENED: frozenset[str] = frozenset({"gae", "reinforce_pp", "reinforce_pp_baseline"})


@dataclass(frozen=True)
class LossConfig:
    """The surrogate that the policy minimises, and how tokens are weighed in it.

    The ratio is clipped to [1 - clip_ratio, 1 + clip_ratio_high]; without ``clip_ratio_high`` both sides are equal.
    ``dual_clip`` bounds the loss of tokens with a negative advantage at that multiple of it; 0 leaves it out.
    """

    surrogate: Literal["clip", "response", "gspo", "cispo"] = "clip"
    clip_ratio: float = 0.2
    clip_ratio_high: float | None = None
    dual_clip: float = 0.0
    aggregation: Aggregation = "token_mean"

    def __post_init__(self) -> None:
        require_positive(ppo__loss__clip_ratio=self.clip_ratio)
        if self.clip_ratio_high is not None:
            require_positive(ppo__loss__clip_ratio_high=self.clip_ratio_high)
        require(
            self.dual_clip == 0 or self.dual_clip > 1,
            field="ppo.loss.dual_clip",
            value=self.dual_clip,
            rule="must exceed 1 (it multiplies a negative advantage), or be 0 for none",
            remedy="use 3, as its authors do",
        )
        require(
            self.dual_clip == 0 or self.surrogate == "clip",
            field="ppo.loss.dual_clip",
            value=self.dual_clip,
            rule=f"is part of the clipped surrogate, and ppo.loss.surrogate is {self.surrogate}",
            remedy="set it to 0, or ppo.loss.surrogate=clip",
        )


@dataclass(frozen=True)
class KlConfig:
    """The penalty on leaving the reference. ``adaptive`` moves the coefficient towards ``target`` nats a response.

    In the reward it is part of what is maximised at every token; in the loss its gradient is added to the policy's.
    """

    coef: float = 0.05
    estimator: Literal["k1", "k2", "k3", "k3_unbiased", "exact"] = "k1"
    placement: Literal["reward", "loss"] = "reward"
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: float = 6.0
    horizon: int = 10_000

    def __post_init__(self) -> None:
        require(
            self.coef >= 0,
            field="ppo.kl.coef",
            value=self.coef,
            rule="must not be negative",
            remedy="use 0 for none",
        )
        require_positive(ppo__kl__target=self.target, ppo__kl__horizon=self.horizon)
        require(
            not (self.placement == "loss" and self.estimator == "k1"),
            field="ppo.kl.estimator",
            value=self.estimator,
            rule="has a gradient whose expectation is 0, so in the loss it would hold nothing back",
            remedy="use k2 or k3_unbiased in the loss, or ppo.kl.placement=reward",
        )
        require(
            not (self.placement == "reward" and self.estimator == "k3_unbiased"),
            field="ppo.kl.estimator",
            value=self.estimator,
            rule="corrects a gradient, and a reward has none",
            remedy="use k1 in the reward, or ppo.kl.placement=loss",
        )


@dataclass(frozen=True)
class CorrectionConfig:
    """Importance weights between the trainer's log-probabilities and the engine's, for rollouts off policy.

    ``truncate`` cuts a weight at ``high``; ``mask`` sets a weight outside [low, high] to 0. A weight is that of a
    token, of the whole response (``sequence``), or of its mean token (``geometric``).
    """

    level: Literal["none", "token", "sequence", "geometric"] = "none"
    mode: Literal["truncate", "mask"] = "truncate"
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        require_not_negative(ppo__correction__low=self.low)
        require(
            self.low < 1 < self.high < float("inf"),
            field="ppo.correction.high",
            value=self.high,
            rule=f"and ppo.correction.low ({self.low:g}) must enclose 1, the weight of a token that is on policy",
            remedy="use low 0.5 and high 2",
        )


@dataclass(frozen=True)
class FilterConfig:
    """Dynamic sampling: groups whose responses all score the same are replaced, in up to ``max_rounds`` rounds.

    A round asks for ``oversampling`` times the groups that are missing. What is accepted is trained on in this step,
    however many groups that makes, so that nothing is lost and nothing grows stale.
    """

    enabled: bool = False
    oversampling: float = 1.0
    max_rounds: int = 4

    def __post_init__(self) -> None:
        require_between(1, 16, ppo__filter__oversampling=self.oversampling)
        require_between(1, 64, ppo__filter__max_rounds=self.max_rounds)


@dataclass(frozen=True)
class ContractConfig:
    """What every step must satisfy. Differences are in nats a token, between engine and trainer, on average."""

    warn_logprob_difference: float = 0.005
    max_logprob_difference: float = 0.01
    max_first_kl: float | None = None  # KL(old || new) before the first update; None: 1e-8, in bfloat16 1e-3
    on_bad_numbers: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        require_positive(
            ppo__contracts__warn_logprob_difference=self.warn_logprob_difference,
            ppo__contracts__max_logprob_difference=self.max_logprob_difference,
        )
        if self.max_first_kl is not None:
            require_positive(ppo__contracts__max_first_kl=self.max_first_kl)

    def first_kl_limit(self, dtype: str) -> float:
        """The limit for a trainer that computes in ``dtype``."""
        if self.max_first_kl is not None:
            return self.max_first_kl
        return 1e-8 if dtype == "float32" else 1e-3
