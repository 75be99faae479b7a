"""The frozen servers: reference log-probabilities and reward-model scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.checks import require_not_negative, require_positive


@dataclass(frozen=True)
class ServerConfig:
    num_replicas: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens_per_batch: int = 8192
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 1.0
    threads_per_replica: int = 1

    def __post_init__(self) -> None:
        require_positive(
            server__num_replicas=self.num_replicas,
            server__max_tokens_per_batch=self.max_tokens_per_batch,
            server__threads_per_replica=self.threads_per_replica,
        )
        require_not_negative(
            server__cpus_per_replica=self.cpus_per_replica, server__gpus_per_replica=self.gpus_per_replica
        )
