"""The reward model: sampling for comparison and Bradley-Terry training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive
from rlhf_ray.config.training import OptimizerConfig
from rlhf_ray.rewards.heads import Heads

AXIS = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class ComparisonConfig:
    """Responses that annotators rank. Each response of a prompt is drawn with the next temperature of the list."""

    num_prompts: int = 600
    num_heldout_prompts: int = 150
    responses_per_prompt: int = 4
    temperatures: tuple[float, ...] = (1.0,)
    soft_labels: bool = True  # False: pairs follow from the ranks alone, and each is certain

    def __post_init__(self) -> None:
        require_positive(
            comparison__num_prompts=self.num_prompts, comparison__num_heldout_prompts=self.num_heldout_prompts
        )
        require_between(2, 64, comparison__responses_per_prompt=self.responses_per_prompt)
        require(
            len(self.temperatures) > 0 and min(self.temperatures) > 0,
            field="comparison.temperatures",
            value=tuple(self.temperatures),
            rule="must be one or more positive numbers",
            remedy="use [1.0]",
        )


@dataclass(frozen=True)
class RewardModelConfig:
    """``batch_size`` counts rankings: all pairs of one ranking share a batch element (InstructGPT, section 3.5).

    ``kind: outcome`` scores whole responses and learns from rankings, ``kind: process`` scores each step of a response
    and learns from ``step_labels``. With ``axes`` the model has a head for each, and the whole is their sum weighed by
    ``axis_weights`` (1 where none is given). ``ensemble`` members are trained apart, each on its own bootstrap sample.
    """

    kind: Literal["outcome", "process"] = "outcome"
    initialise_from: str = "sft"  # "sft", "base" or a path
    axes: tuple[str, ...] = ()  # for example [helpful, honest, harmless]
    axis_weights: dict[str, float] = field(default_factory=dict)
    ensemble: int = 1
    step_labels: str = ""  # where process labels come from: a file, or hub:owner/name[/subset][:split]
    step_separator: str = "\n"  # what ends a step of a response
    ood_preferences: str = ""  # rankings of other prompts than the run's: measured on, never trained on
    num_epochs: float = 1.0  # 0 takes the model as it is, and measures it
    batch_size: int = 32
    margin: float = 0.0  # a winner should lead by this much for every rank between (Llama 2, section 3.2.2)
    centering: float = 0.0  # weight of (r_chosen + r_rejected)^2
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    eval_every: int = 50

    def __post_init__(self) -> None:
        require_between(0, 1e6, reward_model__num_epochs=self.num_epochs)
        require_positive(
            reward_model__batch_size=self.batch_size,
            reward_model__eval_every=self.eval_every,
        )
        require_not_negative(reward_model__margin=self.margin, reward_model__centering=self.centering)
        require_between(1, 64, reward_model__ensemble=self.ensemble)
        self._require_axes()
        self._require_kind()

    def _require_axes(self) -> None:
        require(
            len(self.axes) != 1 and len(set(self.axes)) == len(self.axes) and all(map(AXIS.fullmatch, self.axes)),
            field="reward_model.axes",
            value=tuple(self.axes),
            rule="must be two or more different names of small letters, digits and _",
            remedy="use for example [helpful, honest, harmless], or leave it out for one score",
        )
        unknown = sorted(self.axis_weights.keys() - set(self.axes))
        require(
            not unknown,
            field="reward_model.axis_weights",
            value=unknown,
            rule="are none of reward_model.axes",
            remedy=f"weigh {', '.join(self.axes) or 'nothing'}",
        )
        for axis, weight in self.axis_weights.items():
            require_not_negative(**{f"reward_model__axis_weights__{axis}": weight})
        require(
            not self.axes or sum(self.heads.weights) > 0,
            field="reward_model.axis_weights",
            value=dict(self.axis_weights),
            rule="must not all be 0",
            remedy="leave them out for a weight of 1 each",
        )

    def _require_kind(self) -> None:
        """Rankings and what is made of them belong to outcomes, step labels to processes."""
        process = self.kind == "process"
        require(
            bool(self.step_labels) == process,
            field="reward_model.step_labels",
            value=self.step_labels,
            rule=f"must be given for reward_model.kind=process and for no other, and the kind is {self.kind}",
            remedy="name a file of step labels and set kind=process, or leave both out",
        )
        require(
            self.step_separator != "",
            field="reward_model.step_separator",
            value=self.step_separator,
            rule="must be the text that ends a step",
            remedy='use "\\n"',
        )
        for name, value, unused in (
            ("axes", self.axes, not self.axes),
            ("ensemble", self.ensemble, self.ensemble == 1),
            ("margin", self.margin, self.margin == 0),
            ("centering", self.centering, self.centering == 0),
            ("ood_preferences", self.ood_preferences, not self.ood_preferences),
        ):
            require(
                unused or not process,
                field=f"reward_model.{name}",
                value=value,
                rule="belongs to rankings, and reward_model.kind=process learns from step labels",
                remedy="leave it out, or use kind=outcome",
            )

    @property
    def heads(self) -> Heads:
        if not self.axes:
            return Heads()
        return Heads(tuple(self.axes), tuple(self.axis_weights.get(axis, 1.0) for axis in self.axes))
