"""Tokenizer and data: each finding is provoked."""

from __future__ import annotations

from dataclasses import replace

from rlhf_ray.doctor.facts import Data, Prompts, Text
from rlhf_ray.doctor.findings import Severity
from tests.doctor.made_up import changed, found, healthy, the

ERROR, WARNING, NOTE, OK = Severity.ERROR, Severity.WARNING, Severity.NOTE, Severity.OK
TRAINING = "data, training prompts"


def test_every_token_needs_an_embedding_and_a_response_an_end() -> None:
    assert "841 tokens" in the(healthy(), OK, "tokenizer").found
    assert "900 tokens" in the(changed(healthy(), "text", tokenizer_size=900), ERROR, "model.path").found
    assert the(changed(healthy(), "text", eos_token=None), ERROR, "tokenizer.eos_token")


def test_padding_that_is_missing_or_the_end_of_a_turn_is_a_note() -> None:
    assert the(changed(healthy(), "text", pad_token=None), NOTE, "tokenizer.pad_token")
    assert "EOS" in the(changed(healthy(), "text", pad_token="<|im_end|>"), NOTE, "tokenizer.pad_token").found


def test_a_model_of_the_hub_is_left_to_the_run() -> None:
    facts = replace(healthy(), text=Text(not_fetched=True))
    assert the(facts, NOTE, "model.path")
    assert not found(facts, OK, "tokenizer")


def test_prompts_that_are_empty_repeated_or_too_long_are_warnings() -> None:
    def only(**counts: int) -> str:
        facts = replace(healthy(), data=Data((Prompts("training", 1000, **counts),)))
        assert not found(facts, OK, TRAINING)
        return the(facts, WARNING, TRAINING).found

    assert only(empty=3) == "3 of 1000 are empty"
    assert only(repeated=51) == "51 of 1000 stand there before"
    assert only(too_long=101) == "101 of 1000 are too long and left out"
    assert found(replace(healthy(), data=Data((Prompts("training", 1000, repeated=50, too_long=100),))), OK, TRAINING)


def test_held_out_prompts_that_are_trained_on_are_an_error() -> None:
    assert the(changed(healthy(), "data", leaked=2), ERROR, "data, held-out prompts").fix == "split by prompt"


def test_prompts_that_come_back_too_often_are_a_warning() -> None:
    facts = replace(healthy("ppo.num_steps=100"), data=Data((Prompts("training", 200),)))
    assert "64 times" in the(facts, WARNING, "ppo.num_steps").found  # 100 x 128 / 200
    assert not found(healthy(), WARNING, "ppo.num_steps")


def test_sources_of_the_hub_are_noted() -> None:
    assert "hub:a/b" in the(replace(healthy(), data=Data(not_read=("hub:a/b",))), NOTE, "data").found
