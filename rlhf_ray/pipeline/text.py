"""Between text and tokens, for all stages of a run: one tokenizer, one set of limits, every drop counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_ray.data.chat import tokenize_demonstration, tokenize_prompt, tokenize_response
from rlhf_ray.data.collate import TokenSequence, response_sequence
from rlhf_ray.engines.models import load_tokenizer
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.pipeline.context import Context
from rlhf_ray.records import Demonstration, IntArray, Message, Prompt, Ranking, StepLabelled, TextPrompt
from rlhf_ray.stages.work import LabelledSteps, TokenizedRanking

T = TypeVar("T")


@dataclass(frozen=True)
class TextTools:
    """The run's tokenizer with its limits. ``max_length`` bounds prompt and response together."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @classmethod
    def of(cls, context: Context) -> TextTools:
        path = context.results("model")["tokenizer"]
        return cls(load_tokenizer(path, context.config.model), context.config.model.max_length)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        eos = self.tokenizer.eos_token_id
        return (int(eos),)

    def demonstrations(self, items: Sequence[Demonstration]) -> tuple[list[TokenSequence], int]:
        """Tokenised demonstrations that fit, and how many did not."""
        sequences = [TokenSequence(*tokenize_demonstration(self.tokenizer, item.messages)) for item in items]
        kept = [s for s in sequences if len(s) <= self.max_length]
        return _some(kept, items, "demonstrations", f"fits into {self.max_length} tokens"), len(items) - len(kept)

    def prompts(self, items: Sequence[TextPrompt], *, room: int) -> tuple[list[Prompt], list[TextPrompt], int]:
        """Tokenised prompts that leave ``room`` tokens for a response, the same as text, and how many did not fit."""
        kept: list[Prompt] = []
        texts: list[TextPrompt] = []
        for item in items:
            token_ids = tokenize_prompt(self.tokenizer, item.messages)
            if len(token_ids) + room <= self.max_length:
                kept.append(Prompt(item.prompt_id, token_ids, order=len(kept), kind=item.kind))
                texts.append(item)
        _some(kept, items, "prompts", f"leaves {room} of {self.max_length} tokens for a response")
        return kept, texts, len(items) - len(kept)

    def rankings(self, items: Sequence[Ranking], axes: Sequence[str] = ()) -> tuple[list[TokenizedRanking], int]:
        """Tokenised rankings with a decided pair that fit, and how many were left out. ``index`` is into ``items``.

        Rankings of the whole are taken and those of ``axes``; of other axes they are left out. Where the ranks disagree
        with a soft label, or tie, there are no ranks between its two responses.
        """
        kept = []
        for index, item in enumerate(items):
            prompt = tokenize_prompt(self.tokenizer, item.messages, may_be_empty=True)
            sequences = tuple(response_sequence(prompt, ids) for ids in self._responses(item))
            if item.axis in ("", *axes) and item.pairs and max(len(s) for s in sequences) <= self.max_length:
                pairs = tuple((label.first, label.second) for label in item.labels)
                gaps = tuple(float(max(0, item.ranks[j] - item.ranks[i])) for i, j in pairs)
                probabilities = tuple(label.probability for label in item.labels)
                kept.append(TokenizedRanking(index, sequences, pairs, gaps, probabilities, item.axis))
        _some(kept, items, "rankings", f"has a decided pair and fits into {self.max_length} tokens")
        return kept, len(items) - len(kept)

    def steps(self, items: Sequence[StepLabelled], separator: str) -> tuple[list[LabelledSteps], int]:
        """Tokenised responses that fit, a label at the last token of every step, and how many did not fit.

        The separator belongs to the step that it ends; the last step ends with the response's EOS. Steps are tokenised
        apart, as TRL's PRMTrainer does. Raises ConfigError for a separator that is no token.
        """
        mark = self.tokenizer.encode(separator, add_special_tokens=False)
        if not mark:
            raise ConfigError(
                "reward_model.step_separator",
                separator,
                "is no token at all for the policy's tokenizer",
                "use text that it writes, such as a line break",
            )
        made = [LabelledSteps(index, self._marked_steps(item, mark), item.labels) for index, item in enumerate(items)]
        kept = [each for each in made if len(each.sequence) <= self.max_length]
        fits = f"fits into {self.max_length} tokens"
        return _some(kept, items, "labelled responses", fits), len(items) - len(kept)

    def _marked_steps(self, item: StepLabelled, mark: Sequence[int]) -> TokenSequence:
        ids = tokenize_prompt(self.tokenizer, item.messages).tolist()
        ends = []
        for place, step in enumerate(item.steps):
            is_last = place == len(item.steps) - 1
            ids += tokenize_response(self.tokenizer, step, add_eos=is_last).tolist() + ([] if is_last else list(mark))
            ends.append(len(ids) - 1)
        mask = np.zeros(len(ids), dtype=np.bool_)
        mask[ends] = True
        return TokenSequence(np.array(ids, dtype=np.int32), mask)

    def conversation(self, messages: Sequence[Message], response: str) -> TokenSequence | None:
        """A prompt and a response of the assistant, given as text; None where it is too long."""
        prompt = tokenize_prompt(self.tokenizer, messages, may_be_empty=True)
        sequence = response_sequence(prompt, tokenize_response(self.tokenizer, response, add_eos=True))
        return sequence if len(sequence) <= self.max_length else None

    def _responses(self, ranking: Ranking) -> list[IntArray]:
        if ranking.response_token_ids:
            return [np.array(ids, dtype=np.int32) for ids in ranking.response_token_ids]
        return [tokenize_response(self.tokenizer, text, add_eos=True) for text in ranking.responses]

    def decode(self, token_ids: IntArray) -> str:
        """The text of a response, special tokens left out."""
        text: str = self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)
        return text


def _some(kept: list[T], items: Sequence[object], what: str, does: str) -> list[T]:
    """``kept``, or DataError where it is empty: there were none, or none ``does`` (fits into so many tokens)."""
    if not items:
        raise DataError(f"the data has no {what} where some are needed; add some, or hold out another share")
    if not kept:
        raise DataError(f"none of {len(items)} {what} {does} (model.max_length); raise it or bring shorter ones")
    return kept
