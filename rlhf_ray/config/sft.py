"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_ray.config.checks import require_between, require_positive
from rlhf_ray.config.training import OptimizerConfig


@dataclass(frozen=True)
class SftConfig:
    demonstrations: str = ""  # a file of them, as of `constitution revise`, in place of the task's own for training
    num_epochs: float = 1.0  # 0 takes the model as it is
    batch_size: int = 64  # demonstrations an optimizer step
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    eval_every: int = 100  # steps
    max_eval_demonstrations: int = 256

    def __post_init__(self) -> None:
        require_between(0, 1e6, sft__num_epochs=self.num_epochs)
        require_positive(
            sft__batch_size=self.batch_size,
            sft__eval_every=self.eval_every,
            sft__max_eval_demonstrations=self.max_eval_demonstrations,
        )
