"""Environment variables that a role's process must be started with. Imports no vendor library."""

from __future__ import annotations

from rlhf_ray.config.generation import GenerationConfig


def trainer_environment(device: str, threads: int) -> dict[str, str]:
    """For a trainer's rank: one GPU is device 0 of its process; on CPU DeepSpeed must not look for one."""
    return {**server_environment(device, threads), "LOCAL_RANK": "0", "DS_ACCELERATOR": device}


def server_environment(device: str, threads: int) -> dict[str, str]:
    """For a frozen model."""
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TORCHDYNAMO_DISABLE": "1"}


def generator_environment(device: str, config: GenerationConfig, backend: str) -> dict[str, str]:
    """For a vLLM engine."""
    from rlhf_ray.engines.generation import engine_environment

    return engine_environment(device, config, backend)  # type: ignore[arg-type]
