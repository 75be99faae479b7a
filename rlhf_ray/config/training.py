"""How a model is trained: ranks, ZeRO, precision, micro-batches, optimizer. The same for every stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then constant, linear or cosine decay to ``floor`` times the rate."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    warmup_fraction: float = 0.05
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    floor: float = 0.1

    def __post_init__(self) -> None:
        require_positive(optimizer__learning_rate=self.learning_rate, optimizer__epsilon=self.epsilon)
        require_between(0, 1, optimizer__warmup_fraction=self.warmup_fraction, optimizer__floor=self.floor)
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            require(
                0 <= beta < 1,
                field=f"optimizer.{name}",
                value=beta,
                rule="must lie between 0 and 1, 1 excluded",
                remedy="try 0.9",
            )
        require_not_negative(optimizer__weight_decay=self.weight_decay)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft). Rank 0 trains every weight. With adapters the reference is the policy without them."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        require_between(0, 1024, training__lora__rank=self.rank)
        require_positive(training__lora__alpha=self.alpha)
        require(
            len(self.target_modules) > 0,
            field="training.lora.target_modules",
            value=tuple(self.target_modules),
            rule="must name at least one module",
            remedy="use [q_proj, v_proj], or training.lora.rank=0 for no adapters",
        )
        require(
            self.dropout == 0.0,
            field="training.lora.dropout",
            value=self.dropout,
            rule="must be 0: dropout makes the trained log-probabilities differ from those that were sampled",
            remedy="leave it out",
        )

    @property
    def enabled(self) -> bool:
        return self.rank > 0


@dataclass(frozen=True)
class TrainingConfig:
    """The trainer group. ``max_tokens_per_micro_batch`` bounds rows x longest row, padding included.

    In the ``packed`` layout the transformer sees a micro-batch's sequences end to end and no padding.
    """

    num_ranks: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens_per_micro_batch: int = 4096
    layout: Literal["padded", "packed"] = "padded"
    gradient_checkpointing: bool = False
    gradient_clipping: float = 1.0
    lora: LoraConfig = field(default_factory=LoraConfig)
    cpus_per_rank: float = 1.0
    gpus_per_rank: float = 1.0
    threads_per_rank: int = 1
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        require_positive(
            training__num_ranks=self.num_ranks,
            training__max_tokens_per_micro_batch=self.max_tokens_per_micro_batch,
            training__threads_per_rank=self.threads_per_rank,
            training__timeout_s=self.timeout_s,
        )
        require_between(0, 3, training__zero_stage=self.zero_stage)
        require(
            not (self.offload_optimizer and self.zero_stage == 0),
            field="training.offload_optimizer",
            value=self.offload_optimizer,
            rule="needs ZeRO (training.zero_stage is 0)",
            remedy="set training.zero_stage=2 or leave the optimizer on the device",
        )
        require_not_negative(
            training__gradient_clipping=self.gradient_clipping,
            training__cpus_per_rank=self.cpus_per_rank,
            training__gpus_per_rank=self.gpus_per_rank,
        )
