"""The networks as every role sees them: token log-probabilities, token values, one score a sequence.

Each module wraps one Hugging Face model and answers with per-token tensors under the alignment rule (records.py), so
that no caller shifts an index. Only positions whose token counts pass through the vocabulary head: prompts never do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
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
from transformers.utils import logging as transformers_logging

from rlhf_ray.algo.kl import exact_kl_from_logprobs
from rlhf_ray.algo.logprobs import entropy, token_logprobs
from rlhf_ray.config.model import ModelConfig, ScratchConfig
from rlhf_ray.config.training import LoraConfig
from rlhf_ray.data.collate import TokenBatch
from rlhf_ray.errors import ConfigError

Attention: TypeAlias = Literal["sdpa", "eager", "flash_attention_2"]
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WrappedModel(nn.Module):
    """A Hugging Face model, perhaps with adapters, under a forward pass of ours."""

    model: PreTrainedModel
    packed = False  # whether sequences are laid end to end, without padding, inside the transformer

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def hidden_states(self, batch: TokenBatch) -> Tensor:
        """What the last layer gives for every position, [B, S, H], 0 or anything on padding. No cache is built."""
        if self.packed and bool(batch.attention_mask.any()):
            return packed_hidden_states(self.model, batch)
        return hidden_states(self.model, batch)


class PolicyModule(WrappedModel):
    """A causal language model that answers with log-probabilities of the tokens that are there."""

    def forward(
        self,
        batch: TokenBatch,
        temperature: float = 1.0,
        with_entropy: bool = False,
        against: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(logprobs, entropies, exact KL)``, all [B, S] fp32 and 0 where ``batch.mask`` is False.

        Entropies cost another pass over the logits: without ``with_entropy`` they are all 0. The KL is that to
        ``against``, log-probabilities [N, V] at the N tokens that count; without them it is all 0.
        """
        counted = batch.mask[:, 1:]
        logits = self.model.get_output_embeddings()(self.hidden_states(batch)[:, :-1][counted])  # [N, V]
        targets = batch.input_ids[:, 1:][counted]
        logprobs = _scatter(token_logprobs(logits=logits, targets=targets, temperature=temperature), batch.mask)
        entropies = exact = torch.zeros_like(logprobs)
        if with_entropy:
            entropies = _scatter(entropy(logits=logits, temperature=temperature), batch.mask)
        if against is not None:
            whole = (logits.float() / temperature).log_softmax(-1)
            # A rank without tokens knows no V, and must run the same backward as the others: under ZeRO-3 they wait.
            against = against if len(against) else whole.detach()
            exact = _scatter(exact_kl_from_logprobs(logprobs=whole, ref_logprobs=against), batch.mask)
        return logprobs, entropies, exact

    def distributions(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        """Return the log-probabilities [N, V] of the whole vocabulary at the N tokens that count. Vast: see callers."""
        logits = self.model.get_output_embeddings()(self.hidden_states(batch)[:, :-1][batch.mask[:, 1:]])
        logprobs: Tensor = (logits.float() / temperature).log_softmax(-1)
        return logprobs


class ValueModule(WrappedModel):
    """A scalar-head model that answers with V(state just before each token)."""

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return values [B, S] fp32, 0 where ``batch.mask`` is False."""
        hidden = self.hidden_states(batch)
        values = self.model.score(hidden[:, :-1][batch.mask[:, 1:]]).squeeze(-1).float()
        return _scatter(values, batch.mask)


class RewardModule(WrappedModel):
    """A model that answers with what each of its scalar heads says of a sequence, read at its last token."""

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return scores [B, H] fp32."""
        hidden = self.hidden_states(batch)
        last = batch.attention_mask.long().sum(dim=1) - 1
        rows = torch.arange(len(last), device=last.device)
        scores: Tensor = self.model.score(hidden[rows, last]).float()
        return scores


class StepRewardModule(WrappedModel):
    """A scalar-head model that answers with what it says after every token that counts."""

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return scores [B, S] fp32, 0 where ``batch.mask`` is False."""
        scores = self.model.score(self.hidden_states(batch)[batch.mask]).squeeze(-1).float()
        return _scatter(scores, batch.mask)


def hidden_states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """What the last layer gives for every position, [B, S, H]. No key-value cache is built."""
    body = backbone(model)
    hidden: Tensor = body(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    return hidden


def packed_hidden_states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The same as :func:`hidden_states`, computed without padding; 0 on padding.

    All sequences make one row. Positions that begin again at 0 tell transformers where a sequence ends: no token
    attends to another sequence.
    """
    kept = batch.attention_mask
    positions = kept.long().cumsum(dim=1) - 1
    row: Tensor = backbone(model)(
        input_ids=batch.input_ids[kept][None], position_ids=positions[kept][None], use_cache=False
    ).last_hidden_state
    out = torch.zeros(*kept.shape, row.shape[-1], dtype=row.dtype, device=row.device)
    return out.index_put(kept.nonzero(as_tuple=True), row[0])


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
    model = AutoModelForCausalLM.from_pretrained(path, **_load_arguments(path, config, dtype))
    return with_adapters(model, lora) if lora and lora.enabled else model


def load_scalar(
    path: str,
    config: ModelConfig,
    dtype: torch.dtype,
    lora: LoraConfig | None = None,
    *,
    num_heads: int | None = 1,
    head_seed: int | None = None,
) -> PreTrainedModel:
    """Load a reward model or critic with ``num_heads`` labels; None takes as many as the checkpoint has.

    From a language model the heads are 0, so that V and r begin at 0; with ``head_seed`` they are drawn (normal, with
    variance 1 / (width + 1) as in Stiennon et al. 2020, appendix B.1), so that members of an ensemble begin apart.
    Raises ConfigError where the checkpoint has another number of heads.
    """
    fresh = not is_scalar_model(path, config)
    with _quiet_about_new_weights() if fresh else nullcontext():
        arguments = _load_arguments(path, config, dtype)
        if fresh:
            arguments["config"].num_labels = num_heads or 1
        elif num_heads is not None:
            _require_heads(path, arguments["config"].num_labels, num_heads)
        model = AutoModelForSequenceClassification.from_pretrained(path, **arguments)
    if model.config.pad_token_id is None:  # transformers' own forward wants one, even for a single sequence
        model.config.pad_token_id = int(np.atleast_1d(model.config.eos_token_id)[0])
    if fresh:
        _begin_head(model.score.weight, head_seed)
    return with_adapters(model, lora) if lora and lora.enabled else model


def _require_heads(path: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ConfigError(
            "path",
            path,
            f"has {found} scalar heads where {wanted} are needed",
            "give a checkpoint with as many, or a language model, whose heads are made anew",
        )


def _begin_head(weight: nn.Parameter, seed: int | None) -> None:
    """Set a new head to 0, or to what ``seed`` draws: the same on any number of ranks."""
    part = own_part(weight)
    if seed is None:
        part.zero_()
        return
    shape = torch.Size(getattr(weight, "ds_shape", weight.shape))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / (shape[-1] + 1) ** 0.5
    if part.shape == shape:
        part.copy_(drawn)
        return
    rank, size = torch.distributed.get_rank(), part.numel()
    own = drawn.flatten()[rank * size : (rank + 1) * size]  # the last shard is padded
    part.flatten()[: len(own)].copy_(own)


def own_part(parameter: nn.Parameter) -> Tensor:
    """The elements that this rank holds: all of them, or its shard where ZeRO-3 has partitioned the parameter."""
    part: Tensor = getattr(parameter, "ds_tensor", parameter).detach()
    return part


@contextmanager
def _quiet_about_new_weights() -> Iterator[None]:
    """Leave out transformers' report that the head is new: it is meant to be."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


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


def _load_arguments(path: str, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "config": without_dropout(load_config(path, config)),
        "dtype": dtype,
        "attn_implementation": config.attention,
        "trust_remote_code": config.trust_remote_code,
        "use_safetensors": True,
    }


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """Set every dropout of a configuration to 0, in place: with it a policy would differ from what it sampled with."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    return config


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
        initializer_range=scratch.initializer_range,
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
    """Freeze the model and add low-rank adapters to the modules that ``lora`` names, the same ones on every rank.

    Raises ConfigError where a name fits no linear layer of the transformer.
    """
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    present = {
        name.rsplit(".", 1)[-1] for name, module in backbone(model).named_modules() if isinstance(module, nn.Linear)
    }
    missing = [name for name in lora.target_modules if name not in present]
    if missing:
        raise ConfigError(
            "training.lora.target_modules",
            missing,
            "names modules that the model lacks",
            f"choose from {sorted(present)}",
        )
    settings = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # ZeRO-3 partitions what each rank has drawn, without asking the others
        adapted = get_peft_model(model, settings, autocast_adapter_dtype=False)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)  # a scalar head starts from nothing: it is trained whole
    return adapted


@contextmanager
def adapters_off(module: WrappedModel) -> Iterator[None]:
    """The model before LoRA: the reference, without a second copy of the weights."""
    with module.model.disable_adapter():
        yield
