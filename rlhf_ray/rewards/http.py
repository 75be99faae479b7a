"""A service that scores: responses go out as JSON and scores come back, with retries that stay polite.

POST {"prompts": ["..."], "responses": ["..."], "facts": [{...}]}, with "arguments" where the source has some and
"tokens": [["..."]], each response's one by one, where it wants them
answers {"scores": [0.5, null]}, optionally with "step_rewards": [[[3, 0.1]], []]; null is no score
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rlhf_ray.config.rewards import LONGEST_WAIT_S
from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Graded
from rlhf_ray.rewards.texts import ResponseText, WrongShapeError, read_answer, with_steps

FIRST_WAIT_S = 0.5
WORTH_ANOTHER_TRY = frozenset({408, 429, *range(500, 600)})
REFUSES_EMPTY_LISTS = frozenset({400, 422})
LONGEST_ANSWER_BYTES = 2**26


class ServiceError(RlhfError):
    """A request failed. ``worth_another_try`` is False where the same request would fail again."""

    def __init__(self, reason: str, *, worth_another_try: bool, wait_s: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.worth_another_try = worth_another_try
        self.wait_s = wait_s  # as the service asks
        self.status = status


@dataclass(frozen=True)
class Answer:
    """What came back in time."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpReward:
    """Asks the service at ``url``; ``timeout_s`` bounds one request as a whole, ``token`` is sent as a bearer's."""

    def __init__(
        self,
        url: str,
        *,
        arguments: Mapping[str, Any],
        timeout_s: float,
        max_retries: int,
        seed: int,
        token: str = "",
        wants_tokens: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.wants_tokens = wants_tokens
        self._url = url
        self._arguments = dict(arguments)
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._random = random.Random(seed)
        self._sleep = sleep
        authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(timeout=timeout_s, headers=authorization)

    def grade(self, texts: Sequence[ResponseText]) -> tuple[Graded, ...]:
        """One answer a text; where the service has none to give, all have failed, with the reason."""
        if not texts:
            return ()
        try:
            return self._asked_again(texts)
        except ServiceError as error:
            return tuple(Graded(None, failed=str(error)) for _ in texts)

    def _asked_again(self, texts: Sequence[ResponseText]) -> tuple[Graded, ...]:
        for attempt in range(self._max_retries + 1):
            try:
                return self.ask(texts)
            except ServiceError as error:
                if not error.worth_another_try:
                    raise
                if attempt == self._max_retries:
                    tries = f" after {attempt + 1} tries" if attempt else ""
                    raise ServiceError(f"{error}{tries}", worth_another_try=False) from error
                self._sleep(self._wait(attempt, error.wait_s))
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt: int, asked_s: float) -> float:
        """Twice as long after each failure, half of it by chance; as long as the service asks, within bounds."""
        backoff = FIRST_WAIT_S * 2.0**attempt * (0.5 + 0.5 * self._random.random())
        return float(min(max(backoff, asked_s), LONGEST_WAIT_S))

    def ask(self, texts: Sequence[ResponseText]) -> tuple[Graded, ...]:
        """One request. Raises ServiceError."""
        body: dict[str, Any] = {
            "prompts": [text.prompt.text for text in texts],
            "responses": [text.response for text in texts],
            "facts": [dict(text.prompt.facts) for text in texts],
        }
        if self.wants_tokens:
            body["tokens"] = [list(text.tokens) for text in texts]
        if self._arguments:
            body["arguments"] = self._arguments
        answer = self._post(json.dumps(body).encode())
        if answer.status != 200:
            raise ServiceError(
                f"{self._url} answers {answer.status}{_excerpt(answer.body)}",
                worth_another_try=answer.status in WORTH_ANOTHER_TRY,
                wait_s=retry_after_s(answer.headers),
                status=answer.status,
            )
        try:
            return read_scores(answer.body, len(texts))
        except WrongShapeError as error:
            raise ServiceError(f"{self._url} {error}", worth_another_try=False) from error

    def _post(self, body: bytes) -> Answer:
        """Send, and read the whole answer, within ``timeout_s``: the library's own limit is for each pause."""
        deadline = time.monotonic() + self._timeout_s
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                received = bytearray()
                for part in response.iter_bytes():
                    received += part
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("the whole answer took too long")
                    if len(received) > LONGEST_ANSWER_BYTES:
                        raise ServiceError(
                            f"{self._url} answers more than {LONGEST_ANSWER_BYTES} bytes", worth_another_try=False
                        )
                return Answer(response.status_code, response.headers, bytes(received))
        except httpx.TimeoutException as error:
            raise ServiceError(
                f"{self._url} does not answer within {self._timeout_s:g} s", worth_another_try=True
            ) from error
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._url} cannot be reached: {error}", worth_another_try=True) from error

    def close(self) -> None:
        self._client.close()


def require_service(url: str, *, arguments: Mapping[str, Any], timeout_s: float, token: str = "") -> None:
    """Ask the service to score nothing. Raises ServiceError where it does not answer, or with the wrong shape.

    One that refuses empty lists (400 or 422) is there.
    """
    service = HttpReward(url, arguments=arguments, timeout_s=timeout_s, max_retries=0, seed=0, token=token)
    try:
        service.ask([])
    except ServiceError as error:
        if error.status not in REFUSES_EMPTY_LISTS:
            raise
    finally:
        service.close()


def read_scores(body: bytes, expected: int) -> tuple[Graded, ...]:
    """The answer's scores with their step rewards. Raises WrongShapeError."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WrongShapeError(f"answers what is not JSON: {body[:80]!r}") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
        raise WrongShapeError('answers JSON without a list "scores"')
    if any(isinstance(score, bool) for score in answer["scores"]):
        raise WrongShapeError('answers "scores" that are true or false where numbers were expected')
    graded = read_answer(answer["scores"], expected)
    steps = answer.get("step_rewards") or [[]] * expected
    if not isinstance(steps, list) or len(steps) != expected or not all(isinstance(row, list) for row in steps):
        raise WrongShapeError(f'answers "step_rewards" that are no list of {expected} lists')
    return tuple(with_steps(one.score, row, failed=one.failed) for one, row in zip(graded, steps, strict=True))


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
