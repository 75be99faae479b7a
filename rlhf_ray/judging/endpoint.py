"""An OpenAI-compatible endpoint that answers: POST {base}/chat/completions.

Verdicts by log-probability are read from ``top_logprobs`` of the first token; an endpoint that has none must be asked
for text.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlhf_ray.config.judge import JudgeConfig
from rlhf_ray.errors import RlhfError
from rlhf_ray.judging.questions import Answer, Question, Usage
from rlhf_ray.judging.verdicts import A, B
from rlhf_ray.rewards.service import Service, ServiceError

TOP = 20  # the most that the protocol allows
OVERHEAD = 64  # tokens that a chat template may add to the text, a message


class EndpointError(RlhfError):
    """The endpoint did not answer, or not as the protocol has it."""


class Endpoint:
    """Asks ``num_parallel`` questions at a time and yields answers as they come in."""

    def __init__(self, config: JudgeConfig, service: Service) -> None:
        self._config = config
        self._service = service
        self._threads = ThreadPoolExecutor(config.num_parallel, thread_name_prefix="judge")

    @property
    def identity(self) -> Mapping[str, object]:
        config = self._config
        of_text = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        return {"kind": "endpoint", "url": config.url, "model": config.model, "verdict": config.verdict, **of_text}

    def bound(self, question: Question) -> Usage:
        """No tokenizer of another's model is known: a token is a byte or more."""
        read = sum(len(message.content.encode()) + OVERHEAD for message in question.messages)
        return Usage(read, 1 if self._by_logprobs(question) else self._config.max_tokens)

    async def answers(self, questions: Sequence[Question]) -> AsyncIterator[tuple[int, Answer]]:
        """Yield as answers come in. After a failure nothing more is asked; what was under way is yielded first."""
        loop, stop = asyncio.get_running_loop(), threading.Event()
        asked = [
            loop.run_in_executor(self._threads, self._answer_unless, stop, place, question)
            for place, question in enumerate(questions)
        ]
        failed: EndpointError | None = None
        try:
            for finished in asyncio.as_completed(asked):
                try:
                    answered = await finished
                except EndpointError as error:
                    failed = failed or error
                    stop.set()
                    continue
                if answered is not None:
                    yield answered
        finally:
            stop.set()
        if failed is not None:
            raise failed

    def _answer_unless(self, stop: threading.Event, place: int, question: Question) -> tuple[int, Answer] | None:
        return None if stop.is_set() else (place, self.answer(question))

    def answer(self, question: Question) -> Answer:
        """One question, asked again where that is worth it. Raises EndpointError."""
        try:
            reply = self._service.ask_again(self.body(question))
        except ServiceError as error:
            raise EndpointError(
                f"judge.url: {error}; all earlier answers are kept: give the same command to go on"
            ) from error
        try:
            return read_reply(json.loads(reply), self.bound(question), by_logprobs=self._by_logprobs(question))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise EndpointError(
                f"judge.url: {self._service.url} answers what is no chat completion"
                + (" with top_logprobs; use judge.verdict=text" if self._by_logprobs(question) else "")
                + f" ({type(error).__name__}: {error})"
            ) from error

    def body(self, question: Question) -> dict[str, Any]:
        """The request. Votes differ by their seed, where the endpoint heeds it."""
        messages = [{"role": message.role, "content": message.content} for message in question.messages]
        body: dict[str, Any] = {"model": self._config.model, "messages": messages}
        if self._by_logprobs(question):
            return {**body, "temperature": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        config = self._config
        return {**body, "temperature": config.temperature, "max_tokens": config.max_tokens, "seed": question.vote}

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._service.close()

    def _by_logprobs(self, question: Question) -> bool:
        return question.purpose == "compare" and self._config.verdict == "logprobs"


def read_reply(reply: Any, bound: Usage, *, by_logprobs: bool) -> Answer:
    """The answer in a chat completion; one without a bill costs what it can cost at most."""
    choice = reply["choices"][0]
    text = str(choice["message"]["content"] or "")
    billed = reply.get("usage") or {}
    usage = Usage(int(billed.get("prompt_tokens", bound.read)), int(billed.get("completion_tokens", bound.written)))
    if not by_logprobs:
        return Answer(text, usage)
    masses = {A: 0.0, B: 0.0}
    for likely in choice["logprobs"]["content"][0]["top_logprobs"]:
        verdict = str(likely["token"]).strip()
        if verdict in masses:
            masses[verdict] += math.exp(float(likely["logprob"]))
    return Answer(text, usage, masses)
