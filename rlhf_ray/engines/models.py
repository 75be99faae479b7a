"""The networks as every role sees them: token log-probabilities, token values, one score a sequence.

Each module wraps one Hugging Face model and answers with per-token tensors under the alignment rule (records.py), so that
no caller shifts an index. Only positions whose token counts pass through the vocabulary head: prompts never do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from rlhf_ray.algo.logprobs import entropy, token_logprobs
from rlhf_ray.config.model import ModelConfig, ScratchConfig
from rlhf_ray.config.training import LoraConfig
from rlhf_ray.data.collate import TokenBatch
from rlhf_ray.errors import ConfigError

Attention: TypeAlias = Literal["sdpa", "eager", "flash_attention_2"]
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyModule(nn.Module):
    """A causal language model that answers with log-probabilities of the tokens that are there."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch, temperature: float = 1.0, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Return ``(logprobs, entropies)``, both [B, S] fp32 and 0 where ``batch.mask`` is False.

        Entropies carry no gradient unless ``with_entropy``.
        """
        hidden = backbone(self.model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        counted = batch.mask[:, 1:]
        logits = self.model.get_output_embeddings()(hidden[:, :-1][counted])  # [N, V]
        targets = batch.input_ids[:, 1:][counted]
        logprobs = token_logprobs(logits=logits, targets=targets, temperature=temperature)
        with nullcontext() if with_entropy else torch.no_grad():
            entropies = entropy(logits=logits, temperature=temperature)
        return _scatter(logprobs, batch.mask), _scatter(entropies, batch.mask)


class ValueModule(nn.Module):
    """A scalar-head model that answers with V(state just before each token)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return values [B, S] fp32, 0 where ``batch.mask`` is False."""
        hidden = backbone(self.model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        values = self.model.score(hidden[:, :-1][batch.mask[:, 1:]]).squeeze(-1).float()
        return _scatter(values, batch.mask)


class RewardModule(nn.Module):
    """A scalar-head model that answers with one score a sequence, read at its last token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return scores [B] fp32."""
        hidden = backbone(self.model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        last = batch.attention_mask.long().sum(dim=1) - 1
        rows = torch.arange(len(last), device=last.device)
        scores: Tensor = self.model.score(hidden[rows, last]).squeeze(-1).float()
        return scores


def backbone(model: PreTrainedModel) -> nn.Module:
    """The transformer without its head, with or without adapters."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    body: nn.Module = getattr(inner, inner.base_model_prefix)
    return body


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Put values [N] back where ``mask`` [B, S] is True; zeros elsewhere."""
    out = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return out.masked_scatter(mask, values)


# ------------------------------------------------------------------------------------------------------- load and save
def load_causal(path: str, config: ModelConfig, dtype: torch.dtype, lora: LoraConfig | None = None) -> PreTrainedModel:
    """Load a causal language model, with fresh adapters where ``lora`` asks for them. Safetensors only."""
    model = AutoModelForCausalLM.from_pretrained(path, **_load_arguments(config, dtype))
    return with_adapters(model, lora) if lora and lora.enabled else model


def load_scalar(path: str, config: ModelConfig, dtype: torch.dtype, lora: LoraConfig | None = None) -> PreTrainedModel:
    """Load a reward model or critic with one label. From a language model the head starts at zero: V and r begin at 0."""
    fresh = not is_scalar_model(path, config)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **_load_arguments(config, dtype))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = model.config.eos_token_id
    if fresh:
        nn.init.zeros_(model.score.weight)
    return with_adapters(model, lora) if lora and lora.enabled else model


def is_scalar_model(path: str, config: ModelConfig) -> bool:
    """Whether the directory holds a model with a scalar head already."""
    architectures = load_config(path, config).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def local_checkpoint(path: str) -> str:
    """A directory with the checkpoint: ``path`` itself, or where the hub's files of that name were brought to.

    Raises ConfigError where there is no such directory and the hub cannot give it.
    """
    if Path(path).is_dir():
        return str(Path(path).resolve())
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    except Exception as error:  # the hub's client has many ways to fail
        raise ConfigError(
            "model.path", path, "is neither a directory nor a model that the hub gives", f"check the name ({error})"
        ) from error


def load_config(path: str, config: ModelConfig) -> PretrainedConfig:
    return AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)


def load_tokenizer(path: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)


def _load_arguments(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "attn_implementation": config.attention,
        "trust_remote_code": config.trust_remote_code,
        "use_safetensors": True,
    }


def build_scratch(scratch: ScratchConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Build a small model with random weights for ``tokenizer``; the same seed gives the same weights."""
    family = {"qwen2": Qwen2Config, "llama": LlamaConfig}[scratch.architecture]
    model_config = family(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.num_layers,
        num_attention_heads=scratch.num_heads,
        num_key_value_heads=scratch.num_key_value_heads,
        max_position_embeddings=scratch.max_position_embeddings,
        tie_word_embeddings=scratch.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)


# ----------------------------------------------------------------------------------------------------------------- LoRA
def with_adapters(model: PreTrainedModel, lora: LoraConfig) -> PreTrainedModel:
    """Freeze the model and add low-rank adapters to the modules that ``lora`` names."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [name for name in lora.target_modules if name not in present]
    if missing:
        raise ConfigError(
            "training.lora.target_modules", missing, "names modules that the model lacks", f"choose from {sorted(present)}"
        )
    peft_config = PeftConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules), task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, peft_config)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)  # a scalar head starts from nothing: it is trained whole
    return adapted


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The model before LoRA: the reference, without a second copy of the weights."""
    with module.model.disable_adapter():
        yield
