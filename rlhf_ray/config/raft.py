"""Rejection-sampling fine-tuning: the best of several responses to each prompt become demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_ray.config.checks import require_between, require_positive
from rlhf_ray.config.training import OptimizerConfig


def _default_optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-5, decay="linear", floor=0.0)


@dataclass(frozen=True)
class RaftConfig:
    num_prompts: int = 1000
    responses_per_prompt: int = 8
    temperature: float = 1.0
    num_epochs: float = 1.0  # over the best responses
    batch_size: int = 64
    optimizer: OptimizerConfig = field(default_factory=_default_optimizer)
    eval_every: int = 100

    def __post_init__(self) -> None:
        require_positive(
            raft__num_prompts=self.num_prompts,
            raft__temperature=self.temperature,
            raft__num_epochs=self.num_epochs,
            raft__batch_size=self.batch_size,
            raft__eval_every=self.eval_every,
        )
        require_between(2, 1024, raft__responses_per_prompt=self.responses_per_prompt)
