"""Conversations as tokens: exact renderings, masks, and that training sees what sampling sees."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.data.chat import (
    TEMPLATES,
    filter_by_length,
    set_chat_template,
    tokenize_demonstration,
    tokenize_prompt,
    tokenize_response,
)
from rlhf_ray.data.tokenizer import train_bpe_tokenizer
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.records import IntArray, Message, Prompt

TEXTS = ["the river runs north of the mill", "a mill stands by the river", "north of the river, a bridge"] * 5
DIALOGUE = (
    Message("system", "Be brief."),
    Message("user", "Where is the mill?"),
    Message("assistant", "By the river."),
    Message("user", "And the bridge?"),
    Message("assistant", "North of it."),
)
# A template that writes earlier assistant turns in another way than the last one, as some reasoning models do.
REWRITING = """{%- for m in messages -%}
{{- '<|' + m.role + '|>' -}}
{%- if m.role == 'assistant' and not loop.last -%}{{- '[earlier] ' -}}{%- endif -%}
{{- m.content + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""


def scratch_tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe_tokenizer(TEXTS, vocab_size=280)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = scratch_tokenizer()
    set_chat_template(tokenizer, "chatml")
    return tokenizer


# ------------------------------------------------------------------------------------------------------------ templates
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "Be brief.Where is the mill?By the river.<|im_end|>And the bridge?"),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere is the mill?<|im_end|>\n"
            "<|im_start|>assistant\nBy the river.<|im_end|>\n<|im_start|>user\nAnd the bridge?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "compact",
            "<|system|>Be brief.<|im_end|><|user|>Where is the mill?<|im_end|><|assistant|>By the river.<|im_end|>"
            "<|user|>And the bridge?<|im_end|><|assistant|>",
        ),
    ],
)
def test_the_prompt_of_each_built_in_template_reads(template: str, text: str) -> None:
    tokenizer = scratch_tokenizer()
    set_chat_template(tokenizer, template)
    token_ids = tokenize_prompt(tokenizer, DIALOGUE[:-1])
    assert tokenizer.decode(token_ids) == text
    assert token_ids.dtype == np.int32


def test_a_template_can_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}|{% endfor %}"
    )
    tokenizer = scratch_tokenizer()
    set_chat_template(tokenizer, str(path))
    token_ids, mask = tokenize_demonstration(tokenizer, DIALOGUE[1:])
    assert tokenizer.decode(token_ids) == (
        "Where is the mill?|By the river.<|im_end|>|And the bridge?|North of it.<|im_end|>"
    )
    assert tokenizer.decode(token_ids[mask]) == "By the river.<|im_end|>North of it.<|im_end|>"


def test_a_model_without_a_template_is_an_error_that_names_the_built_in_ones() -> None:
    with pytest.raises(ConfigError, match=r"model.chat_template \('tokenizer'\).*plain, chatml, compact"):
        set_chat_template(scratch_tokenizer(), "tokenizer")


def test_a_model_with_a_template_keeps_it(tokenizer: PreTrainedTokenizerFast) -> None:
    set_chat_template(tokenizer, "tokenizer")
    assert tokenizer.chat_template == TEMPLATES["chatml"]


def test_a_template_whose_special_tokens_are_unknown_is_an_error() -> None:
    bare = train_bpe_tokenizer(TEXTS, vocab_size=280, turn_tokens=())
    with pytest.raises(ConfigError, match=r"<\|im_start\|>"):
        set_chat_template(bare, "chatml")
    set_chat_template(bare, "plain")


def test_a_template_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'chatmll'.*neither a built-in template nor a file"):
        set_chat_template(scratch_tokenizer(), "chatmll")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "EOS token"),
        ("{% for m in messages %}{{ m.content }", "cannot render"),
        ("{{ raise_exception('no such role') }}", "no such role"),
    ],
)
def test_a_template_that_cannot_teach_a_response_is_an_error_at_the_door(
    tmp_path: Path, source: str, message: str
) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(source)
    with pytest.raises(ConfigError, match=message):
        set_chat_template(scratch_tokenizer(), str(path))


# --------------------------------------------------------------------------------------------------------- tokenisation
@pytest.mark.parametrize("template", list(TEMPLATES))
def test_a_demonstration_trains_every_assistant_turn_with_its_eos_and_nothing_else(template: str) -> None:
    tokenizer = scratch_tokenizer()
    set_chat_template(tokenizer, template)
    token_ids, mask = tokenize_demonstration(tokenizer, DIALOGUE)
    assert tokenizer.decode(token_ids[mask]) == "By the river.<|im_end|>North of it.<|im_end|>"
    assert mask[-1]
    assert token_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_a_demonstration_is_the_prompts_and_responses_that_sampling_sees(template: str) -> None:
    tokenizer = scratch_tokenizer()
    set_chat_template(tokenizer, template)
    token_ids, mask = tokenize_demonstration(tokenizer, DIALOGUE)
    for turn in (2, 4):
        prompt = tokenize_prompt(tokenizer, DIALOGUE[:turn])
        response = tokenize_response(tokenizer, DIALOGUE[turn].content, add_eos=True)
        end = len(prompt) + len(response)
        assert token_ids[:end].tolist() == [*prompt.tolist(), *response.tolist()]
        assert mask[len(prompt) : end].all()


def test_no_token_straddles_prompt_and_response() -> None:
    tokenizer = train_bpe_tokenizer(["northwest"] * 50, vocab_size=300)
    set_chat_template(tokenizer, "plain")
    assert len(tokenizer.encode("northwest", add_special_tokens=False)) == 1
    token_ids, mask = tokenize_demonstration(tokenizer, (Message("user", "north"), Message("assistant", "west")))
    assert tokenizer.decode(token_ids[~mask]) == "north"
    assert tokenizer.decode(token_ids[mask]) == "west<|im_end|>"


def test_an_empty_answer_teaches_the_eos_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    token_ids, mask = tokenize_demonstration(tokenizer, (Message("user", "the mill"), Message("assistant", "")))
    assert token_ids[mask].tolist() == [tokenizer.eos_token_id]


def test_a_response_is_closed_by_eos_only_if_it_was_finished(tokenizer: PreTrainedTokenizerFast) -> None:
    finished = tokenize_response(tokenizer, "the mill", add_eos=True)
    cut = tokenize_response(tokenizer, "the mill", add_eos=False)
    assert finished.tolist() == [*cut.tolist(), tokenizer.eos_token_id]
    assert tokenize_response(tokenizer, "", add_eos=False).tolist() == []


def test_a_template_that_rewrites_earlier_turns_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(REWRITING)
    tokenizer = scratch_tokenizer()
    set_chat_template(tokenizer, str(path))
    _, mask = tokenize_demonstration(tokenizer, DIALOGUE[:3])
    assert mask.any()
    with pytest.raises(ConfigError, match="start of the whole conversation"):
        tokenize_demonstration(tokenizer, DIALOGUE)


def test_an_answer_that_spells_out_eos_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"<\|im_end\|>"):
        tokenize_response(tokenizer, "the mill<|im_end|>more", add_eos=True)
    with pytest.raises(DataError, match=r"<\|im_end\|>"):
        tokenize_demonstration(tokenizer, (Message("user", "a"), Message("assistant", "b<|im_end|>c")))


@pytest.mark.parametrize("messages", [(), DIALOGUE[:3], (Message("assistant", "a"), Message("user", "b"))])
def test_a_prompt_that_does_not_wait_for_the_assistant_is_an_error(
    tokenizer: PreTrainedTokenizerFast, messages: tuple[Message, ...]
) -> None:
    with pytest.raises(DataError, match="must"):
        tokenize_prompt(tokenizer, messages)


def test_a_prompt_without_a_token_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    set_chat_template(tokenizer, "plain")
    with pytest.raises(DataError, match="a token to condition on"):
        tokenize_prompt(tokenizer, (Message("user", ""),))


def test_a_demonstration_must_end_with_the_assistant(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="must end with an assistant message"):
        tokenize_demonstration(tokenizer, DIALOGUE[:2])


# -------------------------------------------------------------------------------------------------------------- lengths
def test_items_that_are_too_long_are_returned_and_counted_and_never_cut() -> None:
    prompts = [Prompt(str(length), np.arange(length, dtype=np.int32), order=0) for length in (3, 9, 5, 6)]
    report = filter_by_length(prompts, 5)
    assert [prompt.prompt_id for prompt in report.kept] == ["3", "5"]
    assert [prompt.prompt_id for prompt in report.dropped] == ["9", "6"]
    assert [len(prompt.token_ids) for prompt in report.dropped] == [9, 6]
    assert str(report) == "2 of 4 exceed 5 tokens and are left out; longest 9"


def test_anything_with_tokens_can_be_filtered() -> None:
    @dataclass(frozen=True)
    class Tokens:
        token_ids: IntArray

    assert filter_by_length([Tokens(np.zeros(2, dtype=np.int32))], 1).kept == ()


# -------------------------------------------------------------------------------------------------- trained tokenizer
def test_a_trained_tokenizer_writes_every_text_and_keeps_its_special_tokens_whole() -> None:
    tokenizer = scratch_tokenizer()
    assert len(tokenizer) == 280
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    for text in ("the river", " Zoë — 7 €\n\ttabs , and spaces !", "<|user|>x<|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer.encode("<|user|>", add_special_tokens=False)) == 1


def test_a_trained_tokenizer_survives_saving(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.save_pretrained(tmp_path)
    restored = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected, restored_ids = (tokenize_prompt(each, DIALOGUE[:2]).tolist() for each in (tokenizer, restored))
    assert restored_ids == expected
    assert (restored.pad_token_id, restored.eos_token_id) == (0, 1)


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert scratch_tokenizer().get_vocab() == scratch_tokenizer().get_vocab()


def test_a_vocabulary_without_room_for_the_bytes_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"model.scratch.vocab_size \(200\) must be at least 262"):
        train_bpe_tokenizer(TEXTS, vocab_size=200)


def test_chat_templates_are_imported_without_transformers() -> None:
    code = "import sys, rlhf_ray.data.chat; sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_ranking_of_whole_texts_alone_may_have_an_empty_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    set_chat_template(tokenizer, "plain")
    nothing = (Message("user", ""),)
    assert len(tokenize_prompt(tokenizer, nothing, may_be_empty=True)) == 0
    with pytest.raises(DataError, match="must have a token to condition on"):
        tokenize_prompt(tokenizer, nothing)
