"""Who has which rank in the NCCL group of a weight sync: the trainer's rank 0 first, then the engines' workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.checks import require, require_positive


@dataclass(frozen=True)
class NcclGroup:
    """One group a run. ``address`` and ``port`` are where the trainer's rank 0 listens.

    Engine e's worker w has rank 1 + e * workers_per_engine + w; workers_per_engine is the tensor-parallel size.
    """

    address: str
    port: int
    num_engines: int
    workers_per_engine: int

    def __post_init__(self) -> None:
        require_positive(
            nccl__port=self.port, nccl__num_engines=self.num_engines, nccl__workers_per_engine=self.workers_per_engine
        )

    @property
    def world_size(self) -> int:
        return 1 + self.num_engines * self.workers_per_engine

    def rank_offset(self, engine: int) -> int:
        """Rank of an engine's first worker."""
        require(
            0 <= engine < self.num_engines,
            field="engine",
            value=engine,
            rule=f"must be one of the {self.num_engines} engines of the group",
            remedy="count engines from 0",
        )
        return 1 + engine * self.workers_per_engine

    @property
    def trainer_info(self) -> dict[str, Any]:
        """What the trainer's rank 0 joins with."""
        return {"master_address": self.address, "master_port": self.port, "world_size": self.world_size}

    def engine_info(self, engine: int) -> dict[str, Any]:
        """What an engine's ``init_weight_sync`` takes. It returns once the trainer and all engines have joined."""
        return {**self.trainer_info, "rank_offset": self.rank_offset(engine)}
