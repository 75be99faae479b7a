"""A model behind an OpenAI-compatible endpoint as one of those that are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass

import httpx

from rlhf_ray.config.suite import SuiteConfig
from rlhf_ray.errors import ConfigError, RlhfError
from rlhf_ray.records import Message
from rlhf_ray.rewards.service import Service, ServiceError
from rlhf_ray.suites.examinees import Examinee
from rlhf_ray.suites.kept import Response

TIMEOUT_S = 120.0
MAX_RETRIES = 5
LISTED_WITHIN_S = 10.0


@dataclass(frozen=True)
class Asked:
    """One response that is wanted: its key, the conversation, and a seed, where the endpoint heeds it."""

    key: str
    messages: Sequence[Message]
    seed: int


class EndpointModel:
    """Asks ``num_parallel`` questions at a time."""

    def __init__(self, examinee: Examinee, *, key: str = "", num_parallel: int = 8) -> None:
        """Raises ConfigError where the endpoint is not there, or has not the model."""
        self.model = examinee.model or first_model(examinee.where, key)
        self._url = examinee.where
        self._num_parallel = num_parallel
        self._service = Service(
            f"{examinee.where}/chat/completions", timeout_s=TIMEOUT_S, max_retries=MAX_RETRIES, seed=0, token=key
        )

    @property
    def identity(self) -> Mapping[str, object]:
        """By its address and name: what they stand for may change, and nobody here can know it."""
        return {"kind": "endpoint", "url": self._url, "model": self.model}

    def responses(self, asked: Sequence[Asked], suite: SuiteConfig) -> Iterator[tuple[str, Response]]:
        """Yield (key, response) as they come in. Raises RlhfError for the first that fails; others stay kept."""
        with ThreadPoolExecutor(self._num_parallel, thread_name_prefix="endpoint") as threads:
            waiting = [threads.submit(self._answer, each, suite) for each in asked]
            try:
                for done in as_completed(waiting):
                    yield done.result()
            finally:
                for each in waiting:
                    each.cancel()

    def _answer(self, asked: Asked, suite: SuiteConfig) -> tuple[str, Response]:
        body = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in asked.messages],
            "temperature": suite.temperature,
            "top_p": suite.top_p,
            "max_tokens": suite.max_tokens,
            "seed": asked.seed,
        }
        try:
            return asked.key, read_completion(self._service.ask_again(body))
        except ServiceError as error:
            raise RlhfError(f"{error}; what was answered is kept: give the same command to go on") from error

    def close(self) -> None:
        self._service.close()


def read_completion(reply: bytes) -> Response:
    """The response in a chat completion. Raises RlhfError for anything else."""
    try:
        parsed = json.loads(reply)
        choice = parsed["choices"][0]
        text = str(choice["message"]["content"] or "")
        billed = (parsed.get("usage") or {}).get("completion_tokens")
        return Response(text, int(billed or len(text.split())), choice.get("finish_reason") != "length")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RlhfError(f"the endpoint answers what is no chat completion ({type(error).__name__}: {error})") from error


def first_model(url: str, key: str) -> str:
    """The first model that the endpoint lists. Raises ConfigError where it cannot be asked, or lists none."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    reason = "lists no model"
    try:
        reply = httpx.get(f"{url}/models", headers=headers, timeout=LISTED_WITHIN_S)
        reply.raise_for_status()
        with suppress(KeyError, IndexError, TypeError):
            return str(reply.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = f"cannot be asked for its models ({error})"
    raise ConfigError("endpoint", url, reason, "give the base up to and with /v1, and name the model: URL#MODEL")
