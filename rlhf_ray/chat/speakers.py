"""Who answers in a chat: the Protocol, how answers are sampled, and a model behind an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from rlhf_ray.config.checks import require_between, require_not_negative, require_positive
from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Message
from rlhf_ray.suites.endpoint import first_model

TIMEOUT_S = 120.0  # between two pieces of an answer


@dataclass(frozen=True)
class ChatSampling:
    """Temperature 0 takes the likeliest token; top-k 0 and top-p 1 mean no truncation."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(temperature=self.temperature, top_k=self.top_k, seed=self.seed)
        require_between(0.001, 1, top_p=self.top_p)
        require_positive(max_tokens=self.max_tokens)


class Speaker(Protocol):
    """Answers a conversation, piece by piece."""

    @property
    def name(self) -> str: ...

    def stream(self, messages: Sequence[Message], sampling: ChatSampling) -> Iterator[str]:
        """Yield the answer as it is made. Raises RlhfError where none can be given."""
        ...


class EndpointSpeaker:
    """A model behind an OpenAI-compatible endpoint, streamed as server-sent events."""

    def __init__(self, url: str, model: str = "", key: str = "") -> None:
        """``url`` goes up to and with /v1. Raises ConfigError where the endpoint lists no model and none is named."""
        self._url = url.rstrip("/")
        self._model = model or first_model(self._url, key)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    @property
    def name(self) -> str:
        return self._model

    def stream(self, messages: Sequence[Message], sampling: ChatSampling) -> Iterator[str]:
        """Yield pieces of the answer. Raises RlhfError where the endpoint fails."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stream": True,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k  # vLLM knows it, OpenAI's own protocol does not
        url = f"{self._url}/chat/completions"
        try:
            with httpx.stream("POST", url, json=body, headers=self._headers, timeout=TIMEOUT_S) as reply:
                if reply.status_code != 200:
                    said = reply.read()[:200].decode(errors="replace")
                    raise RlhfError(f"{url} answers {reply.status_code}: {' '.join(said.split())}")
                for line in reply.iter_lines():
                    yield from _piece(line)
        except httpx.HTTPError as error:
            raise RlhfError(f"{url} cannot be asked: {error}") from error


def _piece(line: str) -> Iterator[str]:
    """The text in one event; nothing for other lines. Raises RlhfError for what is no chunk of a completion."""
    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
    if not data or data == "[DONE]":
        return
    try:
        for choice in json.loads(data)["choices"]:
            if text := choice["delta"].get("content"):
                yield str(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RlhfError(f"the endpoint streams what is no chat completion ({type(error).__name__}: {error})") from error
