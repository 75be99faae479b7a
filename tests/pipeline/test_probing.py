"""What an evaluation asks besides its prompts: twins are answered like them, edits are scored by the same rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.data.chat import tokenize_response
from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.evaluation import HeldOut
from rlhf_ray.pipeline.ppo_run import NoProgress
from rlhf_ray.pipeline.probing import SHORT_NAMES, Probes
from rlhf_ray.pipeline.sampling import requests_for
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import SamplingSettings, Score, TextPrompt
from rlhf_ray.roles import RolloutShard
from tests.pipeline.fakes import FakeTask, LetterGenerator, make_context, prompt


class Opinionated(FakeTask):
    """The user of prompt 0 states an opinion."""

    def twins(self, prompts: Sequence[TextPrompt]) -> Mapping[str, TextPrompt]:
        return {"p0": prompt(90, "q0 alone")}


class Here:
    """A scope whose references are the blocks themselves."""

    async def fetch(self, ref: Any) -> Any:
        return ref

    async def put(self, block: Any) -> Any:
        return block


class Zeros:
    async def logprobs(self, shard: RolloutShard) -> Any:
        return [np.zeros(len(rollout.response_ids), dtype=np.float32) for rollout in shard.rollouts]


class ByLength:
    """A token is worth one; ``asked`` are the prompts of what was scored."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        self.asked += [summary.prompt_id for summary in shard.summaries]
        return tuple(Score(float(summary.response_length)) for summary in shard.summaries)


def heldout_of(context: Context, tokenizer: PreTrainedTokenizerFast, max_length: int) -> HeldOut:
    tools = TextTools(tokenizer, max_length)
    prompts, texts, _ = tools.prompts([prompt(n) for n in range(4)], room=12)
    settings = SamplingSettings(max_tokens=12, stop_token_ids=tools.stop_token_ids)
    requests = requests_for(prompts, samples=1, seed=0, purpose=1)
    return HeldOut(context.task, tools, texts, requests, settings, prompts, seed=0)


async def probed(
    root: Path, tokenizer: PreTrainedTokenizerFast, max_length: int = 300
) -> tuple[Any, list[GradedResponse], ByLength]:
    context, rewards, generator = make_context(root, task=Opinionated()), ByLength(), LetterGenerator()
    heldout = heldout_of(context, tokenizer, max_length)
    roles: Any = (Here(), generator, Zeros(), rewards, NoProgress())
    responses = await heldout.answers(*roles)
    return await Probes.of(context, heldout).evaluated(responses, *roles), responses, rewards


async def test_an_edited_response_is_scored_and_its_change_is_in_deviations(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    found, responses, rewards = await probed(tmp_path, tokenizer)
    unit = float(np.std([response.score for response in responses]))
    assert unit > 0
    assert set(found.edited) == set(SHORT_NAMES) == {"length", "list", "agreement", "hedging", "bold"}
    for name, own in found.edited.items():
        assert [each.response for each in own] == responses
        for each in own:
            assert each.text == SHORT_NAMES[name](each.response.response_text)
            assert each.score == len(tokenize_response(tokenizer, each.text, add_eos=True))
            assert each.change == pytest.approx((each.score - each.response.score) / unit)
    assert set(rewards.asked) == {"p0", "p1", "p2", "p3"}  # never a twin, whose text no reward knows


async def test_an_edit_that_makes_a_response_too_long_is_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    found, responses, _ = await probed(tmp_path, tokenizer, max_length=60)
    assert len(found.edited["list"]) == len(responses)
    assert found.edited["length"] == []


async def test_a_prompt_with_an_opinion_is_paired_with_its_twin(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    found, responses, _ = await probed(tmp_path, tokenizer)
    [twins] = found.twins
    assert twins.with_opinion is responses[0]
    assert (twins.alone.prompt_id, twins.alone.prompt_text) == ("p90", "q0 alone")
    assert twins.alone.grades == {"gold": float(len(twins.alone.response_text) > 3)}
    assert twins.alone.score is None
