"""What PPO is given: batches of prompts, a text for the probe, demonstrations to mix in, seeds that never meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.ppo import PROBE_TOKENS, SampledPrompts, pretraining_mix, probe_text
from rlhf_ray.pipeline.sampling import requests_for
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Prompt
from rlhf_ray.seeds import request_seed
from rlhf_ray.stages.work import SequenceWork
from tests.pipeline.fakes import FakeTask, demonstration, make_context


def prompts(count: int, length: int = 3) -> list[Prompt]:
    return [Prompt(f"p{n}", np.full(length, n, dtype=np.int32), order=n) for n in range(count)]


# -------------------------------------------------------------------------------------------------------------- prompts
def test_every_prompt_comes_once_an_epoch_with_its_place_in_the_batch() -> None:
    source = SampledPrompts(prompts(6), batch_size=2, seed=0)
    batches = [source.next_prompts(2) for _ in range(3)]
    assert sorted(p.prompt_id for batch in batches for p in batch) == ["p0", "p1", "p2", "p3", "p4", "p5"]
    assert [[p.order for p in batch] for batch in batches] == [[0, 1]] * 3


def test_a_restored_source_gives_the_very_next_prompts() -> None:
    source = SampledPrompts(prompts(7), batch_size=3, seed=1)
    for _ in range(4):
        source.next_prompts(2)
    restored = SampledPrompts(prompts(7), batch_size=3, seed=1)
    restored.restore(source.state())
    assert [p.prompt_id for p in restored.next_prompts(3)] == [p.prompt_id for p in source.next_prompts(3)]


def test_a_batch_larger_than_the_data_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.rollouts_per_step \(8\) asks for more prompts a step than fit \(6\)"):
        SampledPrompts(prompts(6), batch_size=8, seed=0)


def test_the_probe_is_a_fixed_text_of_bounded_length() -> None:
    assert probe_text(prompts(3)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(probe_text(prompts(20, length=30))) == PROBE_TOKENS
    assert len(probe_text(prompts(20, length=30), max_model_len=40)) == 39
    assert len(probe_text(prompts(20, length=30), max_model_len=4000)) == PROBE_TOKENS
    assert probe_text(prompts(20, length=30)) == probe_text(prompts(20, length=30))


# ---------------------------------------------------------------------------------------------------------------- seeds
def test_the_seeds_of_comparison_evaluation_and_training_never_meet() -> None:
    batch = prompts(50)
    sampled = [
        {request.seed for request in requests_for(batch, samples=4, seed=7, purpose=purpose)} for purpose in (101, 104)
    ]
    trained = {request_seed(7, step, order) for step in range(1, 40) for order in range(50)}
    assert len(sampled[0] | sampled[1] | trained) == 200 + 200 + 39 * 50


def test_a_request_keeps_its_prompt_and_has_its_own_place() -> None:
    requests = requests_for(prompts(2), samples=2, seed=0, purpose=101)
    assert [(r.rollout_id, r.prompt_id, r.order) for r in requests] == [
        ("p0/0", "p0", 0),
        ("p0/1", "p0", 1),
        ("p1/0", "p1", 2),
        ("p1/1", "p1", 3),
    ]


# -------------------------------------------------------------------------------------------------------------- PPO-ptx
def texts_of(works: tuple[SequenceWork, ...]) -> list[list[int]]:
    """The token lists of all ranks, sorted: a batch is a set."""
    return sorted(s.token_ids.tolist() for work in works for micro in work.micro_batches for s in micro)


def test_demonstrations_are_mixed_in_by_seed_and_step_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    set_chat_template(tokenizer, "plain")
    task = FakeTask()
    task.shown["train"] = [demonstration(n, "x" * (n % 9 + 1)) for n in range(50)]
    ppo = PpoConfig(rollouts_per_step=8, num_minibatches=2, ptx_coef=1.0, ptx_batch_size=6)

    def mix(num_ranks: int) -> list[list[list[int]]]:
        config = replace(RunConfig(), ppo=ppo, training=TrainingConfig(num_ranks=num_ranks))
        chosen = pretraining_mix(make_context(tmp_path, config, task), TextTools(tokenizer, 60))
        return [texts_of(works) for step in (1, 2) for works in chosen(step)]

    one_rank = mix(1)
    assert [len(batch) for batch in one_rank] == [6, 6, 6, 6]
    assert len({str(batch) for batch in one_rank}) == 4
    assert mix(1) == mix(2) == one_rank


def test_without_a_weight_nothing_is_mixed_in(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert pretraining_mix(make_context(tmp_path), TextTools(tokenizer, 60))(1) == ()
