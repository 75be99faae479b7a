"""What an engine is built with and asked for: our settings in vLLM's words, and the rules they must obey."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.records import SamplingSettings

if TYPE_CHECKING:
    from vllm import SamplingParams

Device: TypeAlias = Literal["cpu", "cuda"]
TransferBackend: TypeAlias = Literal["shared_memory", "nccl", "ipc"]

_MIN_TEMPERATURE = 0.01  # the engine raises anything between 0 and this to it


def engine_args(model_path: str, config: GenerationConfig, device: Device, backend: TransferBackend) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs; ``config.engine_args`` has the last word."""
    arguments: dict[str, Any] = {
        "model": model_path,
        "skip_tokenizer_init": True,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "generation_config": "vllm",  # sampling follows our settings, not a file beside the weights
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": "uni" if config.tensor_parallel_size == 1 else "mp",
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "kv_cache_memory_bytes": config.kv_cache_bytes(device),
        "enforce_eager": config.runs_eagerly(device),
        "max_num_seqs": config.max_num_seqs,
        "seed": config.seed,
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": f"rlhf_{backend}"},
        "use_tqdm_on_load": False,
        "worker_extension_cls": "rlhf_ray.engines.generation_transfer.TransferExtension",
    }
    if config.kv_on_sync == "keep":
        arguments["enable_prefix_caching"] = False  # a prefix of earlier weights must not serve a new request
    if sleeps(config, device):
        arguments["enable_sleep_mode"] = True
    if device == "cpu":
        # A seeded request whose prompt is cut into chunks kills the engine: CPU generators cannot be set back.
        arguments["enable_chunked_prefill"] = False
    return arguments | dict(config.engine_args)


def sleeps(config: GenerationConfig, device: Device) -> bool:
    """Whether the engine is built to sleep. On a CPU that would free nothing."""
    return config.sleeps and device == "cuda"


def sampling_params(settings: SamplingSettings, seed: int) -> SamplingParams:
    """One response, its sampled tokens' log-probabilities, no text; ended by ``settings.stop_token_ids`` alone."""
    from vllm import SamplingParams

    return SamplingParams(
        n=1,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        seed=seed,
        stop_token_ids=list(settings.stop_token_ids),
        ignore_eos=True,  # stop_token_ids says everything
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        skip_special_tokens=False,
    )


def require_checkpoint(model_path: str) -> None:
    """Raise ConfigError unless the directory can be loaded without running code from it."""
    directory = Path(model_path)
    if not (directory / "config.json").is_file() or not list(directory.glob("*.safetensors")):
        raise ConfigError(
            "model_path",
            model_path,
            "must be a directory with config.json and weights in safetensors",
            "download or convert the checkpoint first; pickled weights are not loaded",
        )


def require_cpu_head_size(head_size: int) -> None:
    """Raise ConfigError for a size that the CPU's attention lacks; the engine would die at its first token."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    supported = CPUAttentionBackend.get_supported_head_sizes()
    if head_size not in supported:
        raise ConfigError(
            "model.head_dim", head_size, f"must be one of {supported} on a CPU", "use another model or number of heads"
        )


def require_settings(settings: SamplingSettings, vocab_size: int) -> None:
    """Raise ConfigError for settings that the engine would change, ignore or choke on."""
    temperature = settings.temperature
    rules = [
        (
            "temperature",
            temperature == 0 or temperature >= _MIN_TEMPERATURE,
            f"must be 0 or at least {_MIN_TEMPERATURE}",
        ),
        ("top_p", 0 < settings.top_p <= 1, "must lie above 0 and not above 1"),
        ("top_k", settings.top_k >= 0, "must not be negative"),
        ("max_tokens", settings.max_tokens >= 1, "must be at least 1"),
        (
            "stop_token_ids",
            all(0 <= token < vocab_size for token in settings.stop_token_ids),
            f"must lie below the vocabulary's size, {vocab_size}",
        ),
    ]
    for name, holds, rule in rules:
        if not holds:
            raise ConfigError(f"sampling.{name}", getattr(settings, name), rule, "change it")
