"""Evaluation of the run's models on held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.checks import require_between, require_not_negative, require_positive


@dataclass(frozen=True)
class EvaluationConfig:
    num_prompts: int = 400
    temperature: float = 1.0
    max_response_tokens: int = 48
    best_of: int = 8  # n of the method best_of_n
    num_shown: int = 12  # responses side by side in the report

    def __post_init__(self) -> None:
        require_positive(
            evaluation__num_prompts=self.num_prompts,
            evaluation__temperature=self.temperature,
            evaluation__max_response_tokens=self.max_response_tokens,
        )
        require_between(2, 1024, evaluation__best_of=self.best_of)
        require_not_negative(evaluation__num_shown=self.num_shown)
