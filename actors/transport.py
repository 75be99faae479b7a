"""How weights travel from the trainer to the engines, and in which type."""

from __future__ import annotations

from typing import Literal

from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError


def transport(config: RunConfig, device: str) -> str:
    """The back end of the weight sync. Raises ConfigError for one that the device does not have."""
    wanted = config.weight_sync.transport
    if wanted == "auto" and device == "cuda":
        return "ipc" if config.training.gpus_per_rank < 1 else "nccl"
    if wanted == "auto":
        return "shared_memory"
    if (wanted == "shared_memory") != (device == "cpu"):
        raise ConfigError(
            "weight_sync.transport", wanted, f"does not work with device {device}", "use weight_sync.transport=auto"
        )
    return wanted


def engine_dtype(config: RunConfig) -> Literal["float32", "bfloat16", "float16"]:
    """What the engines compute in: the trainer's type unless another is asked for."""
    dtype = config.generation.dtype
    return config.training.dtype if dtype == "auto" else dtype


def wire_dtype(config: RunConfig) -> str:
    """What the engines compute in, so that no byte travels in vain."""
    dtype = engine_dtype(config)
    return config.training.dtype if dtype == "float16" else dtype
