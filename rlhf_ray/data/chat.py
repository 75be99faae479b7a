"""Conversations as tokens: chat templates, and which tokens a demonstration teaches.

Prompt and response are tokenised apart, as sampling sees them: no token straddles the place where the model takes over.
That holds for earlier assistant turns too, so a demonstration's tokens before a turn are the prompt of that turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.records import IntArray, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BoolArray: TypeAlias = npt.NDArray[np.bool_]

# Every template closes an assistant turn with the tokenizer's EOS: the token that ends sampling.
PLAIN = """\
{%- for message in messages -%}
{{- message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}"""

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

COMPACT = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' + message['content'] + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""

TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "compact": COMPACT}
SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "chatml": ("<|im_start|>",),
    "compact": ("<|system|>", "<|user|>", "<|assistant|>"),
}


def set_chat_template(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    """Give ``tokenizer`` a template: a built-in name, a path to a Jinja file, or ``tokenizer`` to keep its own.

    The built-in ones: ``plain`` writes the contents one after the other, ``chatml`` names each turn's role in words,
    ``compact`` spends one special token on it. Raises ConfigError where there is no template, where its special tokens
    are not in the vocabulary, and where it does not close an assistant's turn with the EOS token.
    """
    if template in TEMPLATES:
        _check_special_tokens(tokenizer, template)
        tokenizer.chat_template = TEMPLATES[template]
    elif template != "tokenizer":
        tokenizer.chat_template = _read_template(template)
    elif not tokenizer.chat_template:
        raise ConfigError(
            "model.chat_template",
            template,
            "asks for the tokenizer's own template, and it has none",
            f"name a built-in one ({', '.join(TEMPLATES)}) or a path to a Jinja file",
        )
    tokenize_demonstration(tokenizer, (Message("user", "a"), Message("assistant", "b")))


def _check_special_tokens(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    missing = [token for token in SPECIAL_TOKENS[template] if token not in tokenizer.get_vocab()]
    if missing:
        raise ConfigError(
            "model.chat_template",
            template,
            f"needs the special tokens {', '.join(missing)}, which the tokenizer does not know",
            "use the tokenizer's own template, 'plain', or a tokenizer with these tokens",
        )


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "model.chat_template",
            path,
            f"is neither a built-in template nor a file that can be read ({error.strerror})",
            f"use {', '.join(TEMPLATES)}, 'tokenizer', or the path of a Jinja file",
        ) from error


# --------------------------------------------------------------------------------------------------------- tokenisation
def tokenize_prompt(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], *, may_be_empty: bool = False
) -> IntArray:
    """Return the tokens [P] after which the assistant speaks, the header of its turn included.

    Raises DataError where the last message is the assistant's, or where nothing is left to condition on; a ranking of
    whole texts ``may_be_empty``, since nothing is sampled after it.
    """
    if messages and messages[-1].role == "assistant":
        raise DataError("a prompt must not end with an assistant message: it waits for one; leave the last turn out")
    segments = _segments(tokenizer, messages, add_generation_prompt=True)
    token_ids = np.concatenate([_tokenize_segment(tokenizer, segment) for segment in segments])
    if not len(token_ids) and not may_be_empty:
        raise DataError("a prompt must have a token to condition on; give its messages some text")
    return token_ids


def tokenize_response(tokenizer: PreTrainedTokenizerFast, text: str, *, add_eos: bool) -> IntArray:
    """Return the tokens [R] of ``text`` on its own, closed by EOS if asked; add it where the response was finished."""
    eos_token = _eos_token(tokenizer)
    if eos_token in text:
        raise DataError(f"a response must not spell out the EOS token {eos_token!r}: {text[:80]!r}; remove it")
    return _tokenize_segment(tokenizer, _Segment(text, is_response=False, add_eos=add_eos))


def tokenize_demonstration(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> tuple[IntArray, BoolArray]:
    """Return (token_ids, response_mask), both [S]: True at every assistant turn's tokens, its closing EOS included.

    The sequence ends with the last EOS. Raises DataError for a conversation that does not end with the assistant, and
    ConfigError for a template that rewrites earlier turns as the conversation goes on, or that leaves EOS out.
    """
    if not messages or messages[-1].role != "assistant":
        raise DataError("a demonstration must end with an assistant message; add the answer that is to be imitated")
    segments = _segments(tokenizer, messages, add_generation_prompt=False)
    parts = [_tokenize_segment(tokenizer, segment) for segment in segments]
    masks = [np.full(len(part), segment.is_response) for part, segment in zip(parts, segments, strict=True)]
    return np.concatenate(parts), np.concatenate(masks)


@dataclass(frozen=True)
class _Segment:
    """A stretch of the rendered conversation that is tokenised on its own."""

    text: str
    is_response: bool
    add_eos: bool


def _segments(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], *, add_generation_prompt: bool
) -> list[_Segment]:
    """Cut the conversation before and after every assistant turn, by rendering its prefixes.

    What a template writes after the last EOS belongs to the next prompt; it is left out where none follows.
    """
    if not messages or messages[0].role == "assistant":
        raise DataError("a conversation must start with a system or user message; put the prompt first")
    eos_token = _eos_token(tokenizer)
    segments, done = [], ""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        if eos_token in message.content:
            raise DataError(f"a message must not spell out the EOS token {eos_token!r}: {message.content[:80]!r}")
        before = _rendered(tokenizer, messages[:index], add_generation_prompt=True)
        after = _rendered(tokenizer, messages[: index + 1], add_generation_prompt=False)
        response, eos, _ = _continuation(before, after).partition(eos_token)
        if not eos:
            raise _template_error(
                f"must close an assistant turn with the EOS token ({eos_token}), or the model never learns to stop",
                "set the tokenizer's eos_token to the template's end of turn, or use a built-in template",
            )
        segments.append(_Segment(_continuation(done, before), is_response=False, add_eos=False))
        segments.append(_Segment(response, is_response=True, add_eos=True))
        done = before + response + eos
    if add_generation_prompt:
        whole = _rendered(tokenizer, messages, add_generation_prompt=True)
        segments.append(_Segment(_continuation(done, whole), is_response=False, add_eos=False))
    return segments


def _rendered(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise _template_error(f"cannot render the roles {roles}: {error}", "mend the template or the data") from error
    return cast(str, text)


def _continuation(prefix: str, longer: str) -> str:
    """Return what ``longer`` adds to ``prefix``; a template may not change what it wrote before."""
    if not longer.startswith(prefix):
        raise _template_error(
            "must render the start of a conversation as the start of the whole conversation; it turned "
            f"...{prefix[-40:]!r} into something else",
            "train on single turns, or use a template that leaves earlier turns as they were",
        )
    return longer[len(prefix) :]


def _template_error(rule: str, remedy: str) -> ConfigError:
    return ConfigError("model.chat_template", "the tokenizer's", rule, remedy)


def _eos_token(tokenizer: PreTrainedTokenizerFast) -> str:
    if tokenizer.eos_token is None:
        raise ConfigError(
            "tokenizer.eos_token", None, "must be set: it ends a response", "set it in tokenizer_config.json"
        )
    return cast(str, tokenizer.eos_token)


def _tokenize_segment(tokenizer: PreTrainedTokenizerFast, segment: _Segment) -> IntArray:
    token_ids = tokenizer.encode(segment.text, add_special_tokens=False) if segment.text else []
    if segment.add_eos:
        token_ids = [*token_ids, tokenizer.eos_token_id]
    return np.asarray(token_ids, dtype=np.int32)


# -------------------------------------------------------------------------------------------------------------- lengths
class HasTokens(Protocol):
    """A record with a token sequence: a Prompt, a tokenised demonstration."""

    @property
    def token_ids(self) -> IntArray: ...


T = TypeVar("T", bound=HasTokens)


@dataclass(frozen=True)
class LengthReport(Generic[T]):
    """What fits and what does not. Nothing is ever cut to fit."""

    max_tokens: int
    kept: tuple[T, ...]
    dropped: tuple[T, ...]

    def __str__(self) -> str:
        total = len(self.kept) + len(self.dropped)
        longest = max((len(item.token_ids) for item in (*self.kept, *self.dropped)), default=0)
        return f"{len(self.dropped)} of {total} exceed {self.max_tokens} tokens and are left out; longest {longest}"


def filter_by_length(items: Sequence[T], max_tokens: int) -> LengthReport[T]:
    """Sort ``items`` (prompts, tokenised demonstrations) into those of at most ``max_tokens`` tokens and the rest."""
    return LengthReport(
        max_tokens=max_tokens,
        kept=tuple(item for item in items if len(item.token_ids) <= max_tokens),
        dropped=tuple(item for item in items if len(item.token_ids) > max_tokens),
    )
