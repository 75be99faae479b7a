"""Which Ray cluster, how long to wait for it, and how weights travel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.checks import require_positive


@dataclass(frozen=True)
class ClusterConfig:
    """``address``: ``local`` starts a cluster for this run, ``auto`` joins the one this process runs on.

    ``keep_actors``: on CPU, actors that the next stage wants too stay, and hold their room meanwhile unless somebody of
    the same run waits for it.
    """

    address: str = "auto_or_local"
    num_cpus: int | None = None  # of a local cluster; None: what the machine has, 4 at least
    object_store_mb: int = 512  # of a local cluster
    placement_timeout_s: float = 120.0
    wait_for_room_s: float = 1800.0  # after a node was lost, for another to come
    actor_timeout_s: float = 600.0
    keep_actors: bool = True

    def __post_init__(self) -> None:
        require_positive(
            cluster__object_store_mb=self.object_store_mb,
            cluster__placement_timeout_s=self.placement_timeout_s,
            cluster__wait_for_room_s=self.wait_for_room_s,
            cluster__actor_timeout_s=self.actor_timeout_s,
        )
        if self.num_cpus is not None:
            require_positive(cluster__num_cpus=self.num_cpus)


@dataclass(frozen=True)
class WeightSyncConfig:
    """``auto``: CUDA IPC where trainer and generators share GPUs, NCCL on separate GPUs, shared memory on CPU."""

    transport: Literal["auto", "shared_memory", "nccl", "ipc"] = "auto"
    bucket_mb: int = 64
    probe_tolerance: float = 1e-3  # |log-probability of a fixed text, engine - trainer|, fp32
    probe_tolerance_bfloat16: float = 0.3

    def __post_init__(self) -> None:
        require_positive(
            weight_sync__bucket_mb=self.bucket_mb,
            weight_sync__probe_tolerance=self.probe_tolerance,
            weight_sync__probe_tolerance_bfloat16=self.probe_tolerance_bfloat16,
        )
