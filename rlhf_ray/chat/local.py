"""A checkpoint that answers in this process: transformers, one token at a time, seconds after the start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_ray.chat.speakers import ChatSampling
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.chat import tokenize_prompt
from rlhf_ray.engines.models import load_causal
from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Message

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what tokens decode to that end within a letter


class LocalSpeaker:
    """One model and its tokenizer, whose chat template is set."""

    def __init__(
        self,
        name: str,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        model: ModelConfig,
        device: Literal["cpu", "cuda"],
    ) -> None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.name = name
        self._tokenizer = tokenizer
        self._model = load_causal(path, model, dtype).to(device).eval()
        self._device = torch.device(device)

    def stream(self, messages: Sequence[Message], sampling: ChatSampling) -> Iterator[str]:
        """Yield the answer piece by piece; the same conversation, sampling and seed give the same one.

        Raises RlhfError for a conversation that is longer than the model's positions.
        """
        prompt = tokenize_prompt(self._tokenizer, messages)
        room = self._room(len(prompt))
        if room < 1:
            raise RlhfError(
                f"the conversation has {len(prompt)} tokens, and {self.name} takes no more: /undo or /reset"
            )
        said: list[int] = []
        shown = ""
        for token in self._tokens(prompt.tolist(), sampling, min(room, sampling.max_tokens)):
            said.append(token)
            text: str = self._tokenizer.decode(said, skip_special_tokens=True)
            if text.startswith(shown) and not text.endswith(UNFINISHED):
                yield text[len(shown) :]
                shown = text
        whole: str = self._tokenizer.decode(said, skip_special_tokens=True)
        yield whole[len(shown) :]

    def _room(self, used: int) -> int:
        longest = getattr(self._model.config, "max_position_embeddings", None)  # a model may have no such limit
        return 2**31 if longest is None else int(longest) - used

    @torch.inference_mode()
    def _tokens(self, prompt: list[int], sampling: ChatSampling, limit: int) -> Iterator[int]:
        """Sampled tokens up to the one that ends the answer, which is left out."""
        draw = torch.Generator().manual_seed(sampling.seed)
        stop = self._stop_ids()
        ids, past = torch.tensor([prompt], device=self._device), None
        for _ in range(limit):
            output = self._model(input_ids=ids, past_key_values=past, use_cache=True)
            past = output.past_key_values
            token = choose(output.logits[0, -1].float().cpu(), sampling, draw)
            if token in stop:
                return
            yield token
            ids = torch.tensor([[token]], device=self._device)

    def _stop_ids(self) -> set[int]:
        """The tokenizer's EOS, and whatever else the checkpoint says ends its turns."""
        also = self._model.generation_config.eos_token_id if self._model.generation_config else None
        listed = also if isinstance(also, list) else [also]
        return {int(token) for token in (self._tokenizer.eos_token_id, *listed) if token is not None}


def choose(logits: Tensor, sampling: ChatSampling, draw: torch.Generator) -> int:
    """A token from logits [V]: the likeliest at temperature 0, else drawn from what top-k and top-p leave.

    Top-p keeps the smallest set of likeliest tokens whose probability reaches it (Holtzman et al. 2020).
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    keep = probabilities.cumsum(-1) - probabilities < sampling.top_p
    if sampling.top_k:
        keep[sampling.top_k :] = False
    return int(order[torch.multinomial(probabilities * keep, 1, generator=draw)])
