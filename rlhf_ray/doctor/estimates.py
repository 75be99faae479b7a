"""Bytes that a run will hold: by role in memory, and on the disk."""

from __future__ import annotations

from rlhf_ray.config.run import RunConfig
from rlhf_ray.planning.memory import BYTES, Memory, frozen_memory, generator_memory, model_states, trainer_memory
from rlhf_ray.planning.shapes import ModelShape

KEPT_STATES = 2 + 1  # of rlhf_ray/checkpoint.py, and the one that is being written
RAY = 0.6 * 2**30  # of a local cluster's own processes


def role_memory(
    config: RunConfig, shape: ModelShape, *, device: str, gpu_memory: float
) -> tuple[tuple[Memory, int], ...]:
    """Each role of PPO: bytes of one actor (on a GPU: of one device), and how many actors there are."""
    gpu, training, generation = device == "cuda", config.training, config.generation
    dtype = training.dtype if generation.dtype == "auto" else generation.dtype
    share = config.ppo.max_response_tokens / config.model.max_length
    critic = config.ppo.has_critic
    trainer = trainer_memory(shape, training, ranks=training.num_ranks, critic=critic, response_share=share, gpu=gpu)
    engine = generator_memory(
        shape,
        dtype=dtype,
        tensor_parallel=generation.tensor_parallel_size,
        device_bytes=gpu_memory if gpu else 0.0,
        utilisation=generation.gpu_memory_utilization,
        kv=generation.kv_cache_bytes("cuda" if gpu else "cpu"),
    )
    roles = [(trainer, training.num_ranks), (engine, generation.num_engines)]
    if not training.lora.enabled:
        server = config.reference
        memory = frozen_memory(
            "reference", shape, dtype=server.dtype, tokens=server.max_tokens_per_batch, head=True, gpu=gpu
        )
        roles.append((memory, server.num_replicas))
    if config.trains_reward_model:
        server = config.reward_server
        memory = frozen_memory(
            "reward model", shape, dtype=server.dtype, tokens=server.max_tokens_per_batch, head=False, gpu=gpu
        )
        roles.append((memory, server.num_replicas * config.reward_model.ensemble))
    return tuple(roles)


def disk_bytes(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    """What a run writes: models of its stages, states of PPO that exist at once, saved rollouts."""
    training, ppo = config.training, config.ppo
    width = BYTES[training.dtype]
    trained = 1 + len([m for m in config.methods if m != "best_of_n"])  # SFT and each method
    models = shape.parameters * width * (trained + (1 if config.model.path is None else 0))
    if config.trains_reward_model:
        models += shape.scalar_parameters * width * config.reward_model.ensemble
    states = 0.0
    if "ppo" in config.methods and ppo.checkpoint_every:
        adapters = shape.lora_parameters(training.lora.rank, training.lora.target_modules)
        for parameters in (shape.parameters, *([shape.scalar_parameters] if ppo.has_critic else [])):
            trainable = adapters if training.lora.enabled else parameters
            s = model_states(parameters, trainable=trainable, ranks=1, dtype=training.dtype, zero_stage=0)
            states += KEPT_STATES * (s.weights + s.optimizer)
    rollouts = ppo.num_steps * ppo.rollouts_per_step * config.model.max_length * 24.0 if ppo.save_rollouts else 0.0
    return {"models": float(models), "states": states, "rollouts": rollouts}
