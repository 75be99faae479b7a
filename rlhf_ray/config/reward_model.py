"""The reward model: sampling for comparison and Bradley-Terry training."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive
from rlhf_ray.config.training import OptimizerConfig


@dataclass(frozen=True)
class ComparisonConfig:
    """Responses that annotators rank. Each response of a prompt is drawn with the next temperature of the list."""

    num_prompts: int = 600
    num_heldout_prompts: int = 150
    responses_per_prompt: int = 4
    temperatures: tuple[float, ...] = (1.0,)

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
    """``batch_size`` counts rankings: all pairs of one ranking share a batch element (InstructGPT, section 3.5)."""

    initialise_from: str = "sft"  # "sft", "base" or a path
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
