"""Bytes on one device by role. Model states follow ZeRO (Rajbhandari et al. 2020, section 5); see docs/planning.md."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.planning.hardware import GIB
from rlhf_ray.planning.shapes import ModelShape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FRAMEWORK = 2.0 * GIB  # CUDA context, NCCL buffers and kernels' workspaces of a process on a GPU
CHUNK = 1024  # rows of logits that algo/logprobs.py takes to float32 at once
BUCKETS = 2 * 50_000_000 * 4  # DeepSpeed's reduce and gather buckets, as engines/training.py sets them


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they hold. ``host`` is offloaded and does not count."""

    role: str
    parts: dict[str, float] = field(default_factory=dict)
    host: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class States:
    """Bytes of weights, gradients and optimizer on one rank, and of what is offloaded to its host."""

    weights: float
    gradients: float
    optimizer: float
    host: float = 0.0


def model_states(
    parameters: int, *, trainable: int, ranks: int, dtype: str, zero_stage: int, offload: bool = False
) -> States:
    """ZeRO's partition of the states of Adam over ``ranks``.

    float32: 4 + 4 + 8 bytes a parameter. bfloat16: weights 2, gradients 2 and their float32 sums 4, optimizer 12
    (master weights and two moments). Stage 1 shards the optimizer, 2 the gradients, 3 the weights. In bfloat16 stage 0
    runs as 1.
    """
    mixed = dtype != "float32"
    stage = max(1, zero_stage) if mixed else zero_stage
    over = [1 if stage < least else ranks for least in (3, 2, 1)]
    weights = parameters * BYTES[dtype] / over[0]
    gradients = trainable * (6 if mixed else 4) / over[1]
    optimizer = trainable * (12 if mixed else 8) / over[2]
    return States(weights, gradients, 0.0 if offload else optimizer, optimizer if offload else 0.0)


def activation_bytes(shape: ModelShape, *, tokens: int, dtype: str, checkpointing: bool) -> float:
    """Kept for the backward pass of one micro-batch, with attention that stores no scores (sdpa, flash).

    A layer keeps, a token: 4 hidden (two norms, their inputs), queries before and after rotation and what attention
    gives, keys twice and values, 4 intermediate (gate, its activation, up, their product). Checkpointing keeps the
    layers' inputs and one whole layer.
    """
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = 4 * shape.hidden + 3 * queries + 3 * keys + 4 * shape.intermediate
    kept = shape.num_layers * shape.hidden + layer if checkpointing else shape.num_layers * layer
    return float(kept * tokens * BYTES[dtype])


def logit_bytes(shape: ModelShape, *, tokens: int, dtype: str, trained: bool) -> float:
    """Logits of tokens that count, their gradient where ``trained``, and two chunks in float32 (algo/logprobs.py)."""
    whole = tokens * BYTES[dtype] * (2 if trained else 1)
    return float(shape.vocab * (whole + 2 * 4 * min(tokens, CHUNK)))


def trainer_memory(
    shape: ModelShape, training: TrainingConfig, *, ranks: int, critic: bool, response_share: float, gpu: bool = True
) -> Memory:
    """One rank with the policy and, where there is one, the critic. Only one of them has activations at a time."""
    lora = training.lora
    adapters = shape.lora_parameters(lora.rank, lora.target_modules) if lora.enabled else 0
    models = [(shape.parameters, adapters or shape.parameters)]
    if critic:
        models.append((shape.scalar_parameters, adapters or shape.scalar_parameters))
    states = [
        model_states(
            parameters,
            trainable=trainable,
            ranks=ranks,
            dtype=training.dtype,
            zero_stage=training.zero_stage,
            offload=training.offload_optimizer,
        )
        for parameters, trainable in models
    ]
    tokens = training.max_tokens_per_micro_batch
    return Memory(
        "trainer rank",
        {
            "weights": sum(s.weights for s in states),
            "gradients": sum(s.gradients for s in states),
            "optimizer": sum(s.optimizer for s in states),
            "activations": activation_bytes(
                shape, tokens=tokens, dtype=training.dtype, checkpointing=training.gradient_checkpointing
            ),
            "logits": logit_bytes(shape, tokens=round(tokens * response_share), dtype=training.dtype, trained=True),
            "framework": (FRAMEWORK + BUCKETS * len(models)) if gpu else 0.6 * GIB,
        },
        host=sum(s.host for s in states),
    )


def frozen_memory(role: str, shape: ModelShape, *, dtype: str, tokens: int, head: bool, gpu: bool = True) -> Memory:
    """A frozen server: weights, and the largest layer's activations of one batch; no gradients."""
    parameters = shape.parameters if head else shape.scalar_parameters
    layer = 2 * shape.hidden + 2 * shape.intermediate + 2 * shape.num_heads * shape.head_dim
    parts = {"weights": float(parameters * BYTES[dtype]), "activations": float(layer * tokens * BYTES[dtype])}
    if head:
        parts["logits"] = logit_bytes(shape, tokens=tokens // 2, dtype=dtype, trained=False)  # about half are sampled
    parts["framework"] = FRAMEWORK if gpu else 0.5 * GIB
    return Memory(role, parts)


def generator_memory(
    shape: ModelShape, *, dtype: str, tensor_parallel: int, device_bytes: float, utilisation: float, kv: int | None
) -> Memory:
    """One device of an engine. The cache takes what is left of ``utilisation`` where its size is not set (``kv``)."""
    weights = shape.parameters * BYTES[dtype] / tensor_parallel
    gpu = device_bytes > 0
    framework = FRAMEWORK if gpu else 0.6 * GIB
    cache = float(kv) if kv is not None else max(0.0, utilisation * device_bytes - weights - framework)
    return Memory("generator", {"weights": weights, "KV cache": cache, "framework": framework})
