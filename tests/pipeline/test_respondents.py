"""A model of the fleet as judge: verdicts by the next token's probabilities, text by sampling."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.judge import JudgeConfig
from rlhf_ray.data.chat import set_chat_template, tokenize_prompt
from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.questions import Answer, Question, Usage
from rlhf_ray.pipeline.respondents import FleetRespondent, ServedModel, endpoint_key, verdict_tokens
from rlhf_ray.records import GenerationRequest, IntArray, Message, Rollout, SamplingSettings
from rlhf_ray.roles import RolloutShard
from tests.judging.made_up import prompt


class Generator:
    """Says "B." to everything; the probability of A is a tenth of the prompt's number, of B a half."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.requests: list[GenerationRequest] = []
        self.settings: SamplingSettings | None = None

    async def next_token_logprobs(self, prompts: Sequence[IntArray], token_ids: Sequence[int]) -> list[list[float]]:
        letters = verdict_tokens(self.tokenizer)
        texts = [self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True) for tokens in prompts]
        return [
            [math.log(int(text[-1]) / 10 if token in letters["A"] else 0.5) for token in token_ids] for text in texts
        ]

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        self.requests, self.settings = list(requests), settings
        for request in reversed(requests):
            ids = np.array([*self.tokenizer.encode("B."), settings.stop_token_ids[0]], dtype=np.int32)
            zeros = np.zeros(len(ids), dtype=np.float32)
            rollout = Rollout(
                request.rollout_id,
                request.prompt_id,
                request.order,
                request.prompt_ids,
                ids,
                zeros,
                np.zeros(len(ids), dtype=np.int32),
                "stop",
                request.seed,
            )
            yield RolloutShard((rollout.summary,), (rollout,))

    async def load(self, model_path: str) -> None:
        raise AssertionError(model_path)


class Scope:
    async def fetch(self, ref: Any) -> Any:
        return ref


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    set_chat_template(tokenizer, "compact")
    return tokenizer


def respondent(
    tokenizer: PreTrainedTokenizerFast, max_length: int = 40, **settings: Any
) -> tuple[FleetRespondent, Generator]:
    generator = Generator(tokenizer)
    served = ServedModel("no such directory", tokenizer, max_length)
    judge = JudgeConfig(kind="model", **settings)
    return FleetRespondent(judge, served, Scope(), generator), generator  # type: ignore[arg-type]


def question(number: int, purpose: Any = "compare", vote: int = 0) -> Question:
    return Question(purpose, (Message("user", f"q{number}"),), prompt(number), ("x", "y"), vote=vote)


async def answers(judge: FleetRespondent, *questions: Question) -> dict[int, Answer]:
    return {place: answer async for place, answer in judge.answers(questions)}


async def test_a_verdict_is_the_mass_of_the_first_token(chatty: PreTrainedTokenizerFast) -> None:
    judge, _ = respondent(chatty)
    found = await answers(judge, question(3), question(8))
    assert found[0].masses == pytest.approx({"A": 0.3, "B": 0.5})
    assert (found[0].text, found[1].text) == ("B", "A")
    length = len(tokenize_prompt(chatty, question(3).messages))
    assert found[0].usage == judge.bound(question(3)) == Usage(length, 1)


async def test_text_and_critiques_are_sampled_with_seeds_that_follow_from_the_question(
    chatty: PreTrainedTokenizerFast,
) -> None:
    settings: dict[str, Any] = {"verdict": "text", "temperature": 0.7, "max_tokens": 9, "num_votes": 2}
    judge, generator = respondent(chatty, **settings)
    found = await answers(judge, question(1), question(1, vote=1), question(2))
    assert {place: answer.text for place, answer in found.items()} == {0: "B.", 1: "B.", 2: "B."}
    seeds = {request.order: request.seed for request in generator.requests}
    assert len(set(seeds.values())) == 3
    await answers(judge, question(2))
    assert generator.requests[0].seed == seeds[2]  # whatever else is asked
    assert generator.settings == SamplingSettings(temperature=0.7, max_tokens=9, stop_token_ids=(chatty.eos_token_id,))


async def test_a_critique_is_written_also_where_verdicts_are_probabilities(chatty: PreTrainedTokenizerFast) -> None:
    judge, _ = respondent(chatty, max_tokens=9)
    found = await answers(judge, question(1, "critique"), question(2))
    assert (found[0].text, dict(found[0].masses)) == ("B.", {})
    assert found[1].masses


def test_a_question_that_leaves_no_room_for_its_answer_is_not_asked(chatty: PreTrainedTokenizerFast) -> None:
    length = len(tokenize_prompt(chatty, question(1).messages))
    judge, _ = respondent(chatty, max_length=length + 1, max_tokens=2)
    assert judge.bound(question(1)) == Usage(length, 1)
    assert judge.bound(question(1, "critique")) is None


def test_verdicts_are_single_tokens_with_a_space_before_them_or_without(tokenizer: PreTrainedTokenizerFast) -> None:
    found = verdict_tokens(tokenizer)
    assert {name: [tokenizer.decode(token).strip() for token in tokens] for name, tokens in found.items()} == {
        "A": ["A"],
        "B": ["B"],
    }

    class Pieces:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [1, 2]

    with pytest.raises(ConfigError, match=r"needs A to be one token of the judge's tokenizer; use judge\.verdict=text"):
        verdict_tokens(Pieces())  # type: ignore[arg-type]


def test_a_key_is_read_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = JudgeConfig(kind="endpoint", url="http://x/v1", model="m", key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    assert endpoint_key(judge) == "secret"
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match=r"judge\.key_env \('JUDGE_KEY'\) must name a variable that is set"):
        endpoint_key(judge)
