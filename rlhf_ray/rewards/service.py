"""A service that is sent JSON: one request with a limit on the whole of it, and retries that stay polite."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rlhf_ray.config.rewards import LONGEST_WAIT_S
from rlhf_ray.errors import RlhfError
from rlhf_ray.rewards.retries import RetryBudget

FIRST_WAIT_S = 0.5
WORTH_ANOTHER_TRY = frozenset({408, 429, *range(500, 600)})
LONGEST_ANSWER_BYTES = 2**26


class ServiceError(RlhfError):
    """A request failed. ``worth_another_try`` is False where the same request would fail again."""

    def __init__(self, reason: str, *, worth_another_try: bool, wait_s: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.worth_another_try = worth_another_try
        self.wait_s = wait_s  # as the service asks
        self.status = status


@dataclass(frozen=True)
class Reply:
    """What came back in time."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Service:
    """What answers at ``url``; ``timeout_s`` bounds one request as a whole, ``token`` is sent as a bearer's."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        max_retries: int,
        seed: int,
        token: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._random = random.Random(seed)
        self._retries = RetryBudget()
        self._sleep = sleep
        authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(timeout=timeout_s, headers=authorization)

    def ask_again(self, body: Mapping[str, Any]) -> bytes:
        """The answer to one of ``max_retries + 1`` requests. Raises ServiceError.

        All requests share a store of retries, which answers fill: while a service is down few are sent again.
        """
        for attempt in range(self._max_retries + 1):
            try:
                answer = self.ask(body)
                self._retries.answered()
                return answer
            except ServiceError as error:
                if not error.worth_another_try:
                    raise
                if attempt == self._max_retries or not self._retries.take():
                    tries = f" after {attempt + 1} tries" if attempt else ""
                    raise ServiceError(f"{error}{tries}", worth_another_try=False, status=error.status) from error
                self._sleep(self._wait(attempt, error.wait_s))
        raise AssertionError("the last attempt returns or raises")

    def ask(self, body: Mapping[str, Any]) -> bytes:
        """The answer to one request. Raises ServiceError."""
        reply = self._post(json.dumps(body).encode())
        if reply.status != 200:
            raise ServiceError(
                f"{self.url} answers {reply.status}{_excerpt(reply.body)}",
                worth_another_try=reply.status in WORTH_ANOTHER_TRY,
                wait_s=retry_after_s(reply.headers),
                status=reply.status,
            )
        return reply.body

    def close(self) -> None:
        self._client.close()

    def _wait(self, attempt: int, asked_s: float) -> float:
        """Twice as long after each failure, half of it by chance; as long as the service asks, within bounds."""
        backoff = FIRST_WAIT_S * 2.0**attempt * (0.5 + 0.5 * self._random.random())
        return float(min(max(backoff, asked_s), LONGEST_WAIT_S))

    def _post(self, body: bytes) -> Reply:
        """Send, and read the whole answer, within ``timeout_s``: the library's own limit is for each pause."""
        deadline = time.monotonic() + self._timeout_s
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            with self._client.stream("POST", self.url, content=body, headers=headers) as response:
                received = bytearray()
                for part in response.iter_bytes():
                    received += part
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("the whole answer took too long")
                    if len(received) > LONGEST_ANSWER_BYTES:
                        raise ServiceError(
                            f"{self.url} answers more than {LONGEST_ANSWER_BYTES} bytes", worth_another_try=False
                        )
                return Reply(response.status_code, response.headers, bytes(received))
        except httpx.TimeoutException as error:
            raise ServiceError(
                f"{self.url} does not answer within {self._timeout_s:g} s", worth_another_try=True
            ) from error
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} cannot be reached: {error}", worth_another_try=True) from error


def retry_after_s(headers: Mapping[str, str]) -> float:
    """The pause that the service asks for: a number of seconds, or a date (RFC 9110, section 10.2.3); 0 for none."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _excerpt(body: bytes) -> str:
    text = " ".join(body[:200].decode(errors="replace").split())
    return f": {text}" if text else ""
