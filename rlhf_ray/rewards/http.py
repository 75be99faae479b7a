"""A service that scores: responses go out as JSON and scores come back.

POST {"prompts": ["..."], "responses": ["..."], "facts": [{...}]}, with "arguments" where the source has some and
"tokens": [["..."]], each response's one by one, where it wants them
answers {"scores": [0.5, null]}, optionally with "step_rewards": [[[3, 0.1]], []]; null is no score
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_ray.records import Graded
from rlhf_ray.rewards.service import Service, ServiceError
from rlhf_ray.rewards.texts import ResponseText, WrongShapeError, read_answer, with_steps

REFUSES_EMPTY_LISTS = frozenset({400, 422})


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
        self._arguments = dict(arguments)
        self._service = Service(url, timeout_s=timeout_s, max_retries=max_retries, seed=seed, token=token, sleep=sleep)

    def grade(self, texts: Sequence[ResponseText]) -> tuple[Graded, ...]:
        """One answer a text; where the service has none to give, all have failed, with the reason."""
        if not texts:
            return ()
        try:
            return self._read(self._service.ask_again(self._body(texts)), len(texts))
        except ServiceError as error:
            return tuple(Graded(None, failed=str(error)) for _ in texts)

    def ask(self, texts: Sequence[ResponseText]) -> tuple[Graded, ...]:
        """One request. Raises ServiceError."""
        return self._read(self._service.ask(self._body(texts)), len(texts))

    def _body(self, texts: Sequence[ResponseText]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompts": [text.prompt.text for text in texts],
            "responses": [text.response for text in texts],
            "facts": [dict(text.prompt.facts) for text in texts],
        }
        if self.wants_tokens:
            body["tokens"] = [list(text.tokens) for text in texts]
        if self._arguments:
            body["arguments"] = self._arguments
        return body

    def _read(self, body: bytes, expected: int) -> tuple[Graded, ...]:
        try:
            return read_scores(body, expected)
        except WrongShapeError as error:
            raise ServiceError(f"{self._service.url} {error}", worth_another_try=False) from error

    def close(self) -> None:
        self._service.close()


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
