"""Evaluation of SFT and PPO models on held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.checks import require_not_negative, require_positive


@dataclass(frozen=True)
class EvaluationConfig:
    num_prompts: int = 400
    temperature: float = 1.0
    max_response_tokens: int = 48
    num_shown: int = 12  # responses side by side in the report

    def __post_init__(self) -> None:
        require_positive(
            evaluation__num_prompts=self.num_prompts,
            evaluation__temperature=self.temperature,
            evaluation__max_response_tokens=self.max_response_tokens,
        )
        require_not_negative(evaluation__num_shown=self.num_shown)
