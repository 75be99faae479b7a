"""Preference optimisation without a reward model: DPO and its family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive
from rlhf_ray.config.training import OptimizerConfig

PreferenceLoss = Literal["dpo", "robust", "hinge", "ipo", "simpo", "orpo", "kto"]
WITHOUT_REFERENCE = ("simpo", "orpo")
SMOOTHED = ("dpo", "robust")
OF_SOFT_LABELS = ("dpo", "ipo")  # what is defined for pairs of which nobody is certain
WITHOUT_LIKELIHOOD = ("orpo", "kto")  # ORPO has the term already, and KTO has no pairs


def _default_optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-5, decay="linear", floor=0.0)


@dataclass(frozen=True)
class OnlineDpoConfig:
    """Fresh pairs: every ``every`` steps the policy answers ``every * dpo.batch_size`` prompts, and the rewards rank.

    ``num_steps`` 0 learns from the run's comparisons instead.
    """

    num_steps: int = 0
    every: int = 1
    responses_per_prompt: int = 2
    temperature: float = 1.0
    checkpoint_every: int = 10  # rounds; 0 keeps none

    def __post_init__(self) -> None:
        require_not_negative(dpo__online__num_steps=self.num_steps, dpo__online__checkpoint_every=self.checkpoint_every)
        require_positive(dpo__online__every=self.every, dpo__online__temperature=self.temperature)
        require_between(2, 64, dpo__online__responses_per_prompt=self.responses_per_prompt)

    @property
    def enabled(self) -> bool:
        return self.num_steps > 0


@dataclass(frozen=True)
class DpoConfig:
    """``batch_size`` counts rankings: all pairs of one ranking share a batch element, and a ranking weighs 1.

    ``beta`` is the losses' own: of the implicit reward (dpo, robust, hinge, kto), tau (ipo), the scale of the mean
    token's log-probability (simpo), the weight of the odds ratio (orpo).
    """

    loss: PreferenceLoss = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0  # the share of labels believed to be flipped: conservative DPO, robust DPO
    margin: float = 0.0  # dpo: a winner's reward should lead by this much for every rank between
    simpo_margin: float = 0.5  # gamma, between the two rewards
    length_normalised: bool = True  # ipo: log-ratios of the mean token, as its authors run it
    likelihood_coef: float = 0.0  # adds the chosen response's negative log-likelihood a token (RPO)
    desirable_weight: float = 1.0  # kto
    undesirable_weight: float = 1.0
    num_epochs: float = 1.0
    batch_size: int = 32
    optimizer: OptimizerConfig = field(default_factory=_default_optimizer)
    eval_every: int = 50
    online: OnlineDpoConfig = field(default_factory=OnlineDpoConfig)

    def __post_init__(self) -> None:
        require_positive(
            dpo__beta=self.beta,
            dpo__num_epochs=self.num_epochs,
            dpo__batch_size=self.batch_size,
            dpo__eval_every=self.eval_every,
        )
        require_between(0, 0.49, dpo__label_smoothing=self.label_smoothing)
        require_not_negative(
            dpo__margin=self.margin,
            dpo__simpo_margin=self.simpo_margin,
            dpo__likelihood_coef=self.likelihood_coef,
            dpo__desirable_weight=self.desirable_weight,
            dpo__undesirable_weight=self.undesirable_weight,
        )
        self._require_used("label_smoothing", self.label_smoothing, self.loss in SMOOTHED)
        self._require_used("margin", self.margin, self.loss == "dpo")
        self._require_used("likelihood_coef", self.likelihood_coef, self.loss not in WITHOUT_LIKELIHOOD)
        require(
            self.loss != "robust" or self.label_smoothing > 0,
            field="dpo.label_smoothing",
            value=self.label_smoothing,
            rule="must be above 0 with dpo.loss=robust, which corrects for that share of flipped labels",
            remedy="estimate it from annotators' disagreement, or use dpo.loss=dpo",
        )

    def _require_used(self, name: str, value: float, used: bool) -> None:
        require(
            used or value == 0,
            field=f"dpo.{name}",
            value=value,
            rule=f"has no place in dpo.loss={self.loss}",
            remedy="set it to 0 or choose another loss",
        )

    @property
    def takes_soft_labels(self) -> bool:
        return self.loss in OF_SOFT_LABELS

    @property
    def has_reference(self) -> bool:
        return self.loss not in WITHOUT_REFERENCE
