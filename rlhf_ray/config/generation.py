"""The generators: how many engines, how large, how fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_ray.config.checks import require, require_not_negative, require_positive

# What the engine's own interface rests on: another value would break sampling or weight sync, not tune it.
RESERVED_ENGINE_ARGS = frozenset(
    {"model", "load_format", "logprobs_mode", "tensor_parallel_size", "weight_transfer_config", "worker_extension_cls"}
    # Each of these can make the engine sample from another distribution than the softmax of the weights it was sent,
    # or let more than a request's seed decide its tokens.
    | {"generation_config", "override_generation_config", "logits_processors", "watermark_config", "diffusion_config"}
    | {"structured_outputs_config", "reasoning_config", "reasoning_parser", "reasoning_parser_plugin"}
    | {"speculative_config", "spec_method", "spec_model", "spec_tokens"}
)


@dataclass(frozen=True)
class GenerationConfig:
    """``None`` leaves a choice to the device: see :meth:`kv_cache_bytes` and :meth:`runs_eagerly`.

    ``engine_args`` goes to vLLM's AsyncEngineArgs as it is and overrides what we would have passed.
    """

    num_engines: int = 1  # at the start; `rlhf-ray scale` changes it while a run lives
    scale: Literal["fixed", "auto"] = "fixed"  # auto: by who waits for whom, between the next two
    min_engines: int = 1
    max_engines: int | None = None  # None: num_engines
    tensor_parallel_size: int = 1
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"  # auto: as the trainer
    max_model_len: int | None = None  # prompt and response, tokens; None: what the model was built for
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_mb: int | None = None
    enforce_eager: bool | None = None
    max_num_seqs: int = 256
    seed: int = 0
    # What becomes of a response that weights change under (ppo.schedule=async): its keys and values are computed again,
    # or stay those of the weights that they came from. Keeping costs the sharing of prefixes between requests.
    kv_on_sync: Literal["recompute", "keep"] = "recompute"
    sleeps: bool = False  # can give its GPU's memory back and take it again; ppo.schedule=colocate sets it
    engine_args: dict[str, Any] = field(default_factory=dict)
    shard_size: int = 16  # rollouts that are sampled, scored and travel as one block
    cpus_per_engine: float = 1.0
    gpus_per_engine: float | None = None  # None: one for each of tensor_parallel_size

    def __post_init__(self) -> None:
        require_positive(
            generation__num_engines=self.num_engines,
            generation__tensor_parallel_size=self.tensor_parallel_size,
            generation__max_num_seqs=self.max_num_seqs,
            generation__shard_size=self.shard_size,
        )
        require_not_negative(generation__cpus_per_engine=self.cpus_per_engine)
        self._require_sizes()
        if self.gpus_per_engine is not None:
            require_not_negative(generation__gpus_per_engine=self.gpus_per_engine)
        if self.max_model_len is not None:
            require_positive(generation__max_model_len=self.max_model_len)
        if self.kv_cache_memory_mb is not None:
            require_positive(generation__kv_cache_memory_mb=self.kv_cache_memory_mb)
        require(
            0 < self.gpu_memory_utilization <= 1,
            field="generation.gpu_memory_utilization",
            value=self.gpu_memory_utilization,
            rule="must lie above 0 and not above 1",
            remedy="try 0.9, or 0.4 where the trainer shares the GPU",
        )
        require(
            0 <= self.seed < 2**32,
            field="generation.seed",
            value=self.seed,
            rule="must lie between 0 and 2**32 - 1",
            remedy="choose a seed in that range",
        )
        reserved = sorted(RESERVED_ENGINE_ARGS & self.engine_args.keys())
        require(
            not reserved,
            field="generation.engine_args",
            value=reserved,
            rule="must not set what sampling and weight sync rest on",
            remedy="remove these keys; tensor_parallel_size has a field of its own",
        )

    def _require_sizes(self) -> None:
        """The fleet begins between its bounds; bounds are for a fleet that sizes itself."""
        require_positive(generation__min_engines=self.min_engines, generation__max_engines=self.most_engines)
        require(
            self.scale == "fixed" or self.min_engines <= self.num_engines <= self.most_engines,
            field="generation.num_engines",
            value=self.num_engines,
            rule=f"must lie between generation.min_engines ({self.min_engines}) and generation.max_engines "
            f"({self.most_engines}) with generation.scale=auto",
            remedy="choose a size to begin with, or wider bounds",
        )
        require(
            self.scale == "auto" or (self.min_engines == 1 and self.max_engines is None),
            field="generation.scale",
            value=self.scale,
            rule="does not look at generation.min_engines and generation.max_engines",
            remedy="use generation.scale=auto, or leave both out",
        )

    @property
    def most_engines(self) -> int:
        return self.num_engines if self.max_engines is None else self.max_engines

    def kv_cache_bytes(self, device: Literal["cpu", "cuda"]) -> int | None:
        """Bytes for the KV cache: as configured, else 128 MiB on a CPU, and None (as much as fits) on a GPU."""
        default = 128 if device == "cpu" else None
        megabytes = self.kv_cache_memory_mb if self.kv_cache_memory_mb is not None else default
        return None if megabytes is None else megabytes * 2**20

    def runs_eagerly(self, device: Literal["cpu", "cuda"]) -> bool:
        """Whether the engine skips compilation: as configured, else on a CPU, where it costs more than it gains."""
        return device == "cpu" if self.enforce_eager is None else self.enforce_eager
