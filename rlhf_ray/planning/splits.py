"""Which devices should do what: every split of them that fits, and the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_ray.config.run import RunConfig
from rlhf_ray.planning.hardware import Accelerator, Efficiency
from rlhf_ray.planning.memory import BYTES, Memory, frozen_memory, generator_memory, trainer_memory
from rlhf_ray.planning.step_time import PhaseSeconds, Split, phase_seconds
from rlhf_ray.planning.workload import Workload

USABLE = 0.95  # of a device's memory; the rest is fragmentation
LEAST_SEQUENCES = 8  # that an engine's cache must hold


@dataclass(frozen=True)
class Candidate:
    """A split with what each role needs on a device, and the time of a step. ``short``: the roles that do not fit."""

    split: Split
    memory: tuple[Memory, ...]
    seconds: PhaseSeconds
    short: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.short


def roles_memory(config: RunConfig, work: Workload, split: Split, device: Accelerator) -> tuple[Memory, ...]:
    """Bytes on one device of each role. Where all share a device, the engine's cache takes what the others leave."""
    share = work.response / (work.prompt + work.response)
    others = [trainer_memory(work.shape, work.training, ranks=split.ranks, critic=work.critic, response_share=share)]
    if work.reference_server:
        tokens, dtype = config.reference.max_tokens_per_batch, config.reference.dtype
        others.append(frozen_memory("reference", work.shape, dtype=dtype, tokens=tokens, head=True))
    if work.reward_shape is not None:
        tokens, dtype = config.reward_server.max_tokens_per_batch, config.reward_server.dtype
        others.append(frozen_memory("reward model", work.reward_shape, dtype=dtype, tokens=tokens, head=False))
    utilisation = config.generation.gpu_memory_utilization
    if split.shared:
        left = USABLE * device.memory - sum(memory.total for memory in others)
        utilisation = min(utilisation, max(0.0, left / device.memory))
    generator = generator_memory(
        work.shape,
        dtype=work.engine_dtype,
        tensor_parallel=split.tensor_parallel,
        device_bytes=device.memory,
        utilisation=utilisation,
        kv=config.generation.kv_cache_bytes("cuda"),
    )
    return (others[0], generator, *others[1:])


def judge(config: RunConfig, work: Workload, split: Split, device: Accelerator, efficiency: Efficiency) -> Candidate:
    """Memory and time of one split."""
    memory = roles_memory(config, work, split, device)
    room = USABLE * device.memory
    short: tuple[str, ...]
    if split.shared:
        short = ("all roles on one device",) if sum(m.total for m in memory) > room else ()
    else:
        short = tuple(m.role for m in memory if m.total > room)
    cache = next(m.parts["KV cache"] for m in memory if m.role == "generator")
    need = work.shape.kv_bytes_per_token(BYTES[work.engine_dtype]) * work.max_length * LEAST_SEQUENCES
    if cache * split.tensor_parallel < need:
        short = (*short, "generator's cache")
    return Candidate(split, memory, phase_seconds(work, split, device, efficiency, cache), short)


def configured(config: RunConfig, work: Workload, nodes: int = 1) -> Split:
    """The split that the configuration itself asks for."""
    training, generation = config.training, config.generation
    return Split(
        ranks=training.num_ranks,
        engines=generation.num_engines,
        tensor_parallel=generation.tensor_parallel_size,
        reference=config.reference.num_replicas if work.reference_server else 0,
        reward=config.reward_server.num_replicas if work.reward_shape is not None else 0,
        nodes=nodes,
        shared=training.gpus_per_rank < 1,
    )


def splits(work: Workload, devices: int, device: Accelerator, nodes: int) -> Iterator[Split]:
    """Every way to use exactly ``devices``: engines of 1, 2, 4 or 8 devices, one to four replicas of each server."""
    server_counts = [n for n in (1, 2, 3, 4) if n <= max(1, devices // 4)]
    references = server_counts if work.reference_server else [0]
    rewards = server_counts if work.reward_shape is not None else [0]
    for width in (1, 2, 4, 8):
        if width > device.per_node or work.shape.num_heads % width or work.shape.num_kv_heads % width:
            continue
        for reference in references:
            for reward in rewards:
                left = devices - reference - reward
                for engines in range(1, (left - 1) // width + 1):
                    yield Split(left - engines * width, engines, width, reference, reward, nodes)


def search(
    config: RunConfig, work: Workload, *, devices: int, nodes: int, device: Accelerator, efficiency: Efficiency
) -> tuple[Candidate, ...]:
    """Every split, the fastest that fit first (phases in turn). Within one node the roles may also share devices."""
    tried = list(splits(work, devices, device, nodes))
    if devices <= device.per_node:
        servers = (1 if work.reference_server else 0, 1 if work.reward_shape is not None else 0)
        tried.append(Split(devices, devices, 1, *servers, nodes, shared=True))
    return ranked([judge(config, work, split, device, efficiency) for split in tried])


def ranked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that fit before those that do not, the fastest first; of equals the one with fewer devices an engine."""
    return tuple(
        sorted(candidates, key=lambda c: (not c.fits, c.seconds.in_turn, c.split.tensor_parallel, c.split.engines))
    )
