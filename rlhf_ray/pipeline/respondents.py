"""Who answers a judge's questions in a run: a model of the fleet, an endpoint, or a rule that knows what is true."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf_ray.config.judge import JudgeConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.chat import set_chat_template, tokenize_prompt
from rlhf_ray.data.world_demonstrations import good_response
from rlhf_ray.engines.models import load_config
from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.endpoint import Endpoint
from rlhf_ray.judging.ledger import key_of
from rlhf_ray.judging.questions import Answer, Question, Respondent, Usage
from rlhf_ray.judging.simulated import WHOLE, Simulated
from rlhf_ray.judging.verdicts import A, B
from rlhf_ray.pipeline.context import Context, GeneratorFleet, Scope
from rlhf_ray.pipeline.door import checkpoint_directory, read_tokenizer
from rlhf_ray.pipeline.lineage import fingerprint
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import GenerationRequest, IntArray, Rollout, SamplingSettings
from rlhf_ray.rewards.service import Service


@asynccontextmanager
async def open_respondent(context: Context) -> AsyncIterator[Respondent]:
    """Whoever ``judge.kind`` names, ready to answer; what it started ends with it.

    Raises ConfigError for a checkpoint, a key or a simulation that cannot be.
    """
    judge = context.config.judge
    if judge.kind == "simulated":
        yield simulated(context)
    elif judge.kind == "endpoint":
        with closing(Endpoint(judge, _service(judge, context.config.seed))) as endpoint:
            yield endpoint
    else:
        served = served_model(context)
        if judge.verdict == "logprobs":
            verdict_tokens(served.tokenizer)  # before engines start, which takes longer
        async with context.fleet.scope() as scope:
            yield FleetRespondent(judge, served, scope, await scope.generators(served.path))


# ----------------------------------------------------------------------------------------------------- without a fleet
def simulated(context: Context) -> Simulated:
    """A rule that reads the task's own grades. Raises ConfigError for data without a ground truth."""
    config, task = context.config, context.task
    prompts = task.prompts("train")[:1]
    if not prompts or WHOLE not in task.grade(prompts[0], "yes"):
        rule = f"needs data with a ground truth, and data.task={config.data.task} grades no {WHOLE}"
        raise ConfigError("judge.kind", "simulated", rule, "use judge.kind=model or endpoint")
    return Simulated(
        task.grade,
        error_rate=config.judge.error_rate,
        position_bias=config.judge.position_bias,
        seed=config.seed,
        in_text=config.judge.verdict == "text",
        expert=good_response if config.data.task == "world" else None,
    )


def endpoint_key(judge: JudgeConfig) -> str:
    """The key that ``judge.key_env`` names; empty where it names none. Raises ConfigError where it is not set."""
    key = os.environ.get(judge.key_env, "") if judge.key_env else ""
    if judge.key_env and not key:
        rule = f"must name a variable that is set where {judge.url} is asked"
        raise ConfigError("judge.key_env", judge.key_env, rule, "export it before the run")
    return key


def _service(judge: JudgeConfig, seed: int) -> Service:
    return Service(
        f"{judge.url.rstrip('/')}/chat/completions",
        timeout_s=judge.timeout_s,
        max_retries=judge.max_retries,
        seed=seed,
        token=endpoint_key(judge),
    )


# ---------------------------------------------------------------------------------------------------------- the fleet's
@dataclass(frozen=True)
class ServedModel:
    """A checkpoint with its tokenizer; ``max_length`` bounds question and answer together."""

    path: str
    tokenizer: PreTrainedTokenizerBase
    max_length: int


def served_model(context: Context) -> ServedModel:
    """The checkpoint at ``judge.path``, or the run's own SFT model. Raises ConfigError for one that cannot be used."""
    config = context.config
    if not config.judge.path:
        tools = TextTools.of(context)
        return ServedModel(str(policy_path(context)), tools.tokenizer, tools.max_length)
    return served_checkpoint(config, config.judge.path, field="judge.path")


def served_checkpoint(config: RunConfig, path: str, *, field: str) -> ServedModel:
    """Any checkpoint with its own tokenizer, and the run's chat template where it has none of its own.

    Raises ConfigError, naming ``field``, for one that cannot be used.
    """
    directory = checkpoint_directory(path, field=field)
    tokenizer = read_tokenizer(directory, config.model, field=field)
    set_chat_template(tokenizer, "tokenizer" if tokenizer.chat_template else config.model.chat_template)
    longest = config.generation.max_model_len or load_config(str(directory), config.model).max_position_embeddings
    return ServedModel(str(directory), tokenizer, int(longest))


class FleetRespondent:
    """A model behind the engines that sample for PPO: verdicts by the next token's probabilities, or text."""

    def __init__(self, judge: JudgeConfig, served: ServedModel, scope: Scope, generator: GeneratorFleet) -> None:
        self._judge = judge
        self._served = served
        self._scope = scope
        self._generator = generator
        self._verdicts = verdict_tokens(served.tokenizer) if judge.verdict == "logprobs" else {}
        of_text = {"temperature": judge.temperature, "max_tokens": judge.max_tokens}
        self.identity: Mapping[str, object] = {
            "kind": "model",
            "content": fingerprint(served.path),
            "verdict": judge.verdict,
            **of_text,
        }

    def bound(self, question: Question) -> Usage | None:
        written = 1 if self._by_logprobs(question) else self._judge.max_tokens
        read = len(self._tokens(question))
        return Usage(read, written) if read + written <= self._served.max_length else None

    async def answers(self, questions: Sequence[Question]) -> AsyncIterator[tuple[int, Answer]]:
        by_logprobs = [place for place, question in enumerate(questions) if self._by_logprobs(question)]
        in_text = [place for place, question in enumerate(questions) if not self._by_logprobs(question)]
        if by_logprobs:
            async for answer in self._by_next_token(questions, by_logprobs):
                yield answer
        if in_text:
            async for answer in self._written(questions, in_text):
                yield answer

    async def _by_next_token(
        self, questions: Sequence[Question], places: Sequence[int]
    ) -> AsyncIterator[tuple[int, Answer]]:
        prompts = [self._tokens(questions[place]) for place in places]
        token_ids = [token for tokens in self._verdicts.values() for token in tokens]
        found = await self._generator.next_token_logprobs(prompts, token_ids)
        for place, prompt, logprobs in zip(places, prompts, found, strict=True):
            at = dict(zip(token_ids, logprobs, strict=True))
            masses = {name: math.fsum(math.exp(at[t]) for t in tokens) for name, tokens in self._verdicts.items()}
            yield place, Answer(max(masses, key=lambda name: masses[name]), Usage(len(prompt), 1), masses)

    async def _written(self, questions: Sequence[Question], places: Sequence[int]) -> AsyncIterator[tuple[int, Answer]]:
        tokenizer = self._served.tokenizer
        settings = SamplingSettings(
            temperature=self._judge.temperature,
            max_tokens=self._judge.max_tokens,
            stop_token_ids=(int(tokenizer.eos_token_id),),
        )
        requests = [self._request(place, questions[place]) for place in places]
        async for shard in self._generator.generate(requests, settings):
            rollouts: Sequence[Rollout] = await self._scope.fetch(shard.rollouts)
            for rollout in rollouts:
                text: str = tokenizer.decode(rollout.response_ids.tolist(), skip_special_tokens=True)
                yield rollout.order, Answer(text, Usage(len(rollout.prompt_ids), len(rollout.response_ids)))

    def _request(self, place: int, question: Question) -> GenerationRequest:
        """The seed follows from the question, so that an answer does not depend on what else is asked."""
        seed = int(key_of(question, self.identity)[:8], 16)
        return GenerationRequest(str(place), question.prompt.prompt_id, place, self._tokens(question), seed)

    def _by_logprobs(self, question: Question) -> bool:
        return question.purpose == "compare" and self._judge.verdict == "logprobs"

    def _tokens(self, question: Question) -> IntArray:
        return tokenize_prompt(self._served.tokenizer, question.messages)


def verdict_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[int, ...]]:
    """The tokens that say A, and those that say B, with a space before them or without.

    Raises ConfigError where one of the letters is no token of its own.
    """
    found: dict[str, tuple[int, ...]] = {}
    for verdict in (A, B):
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in (verdict, f" {verdict}")]
        found[verdict] = tuple(sorted({ids[0] for ids in encoded if len(ids) == 1}))
        if not found[verdict]:
            rule = f"needs {verdict} to be one token of the judge's tokenizer"
            raise ConfigError("judge.verdict", "logprobs", rule, "use judge.verdict=text")
    return found
