"""Reward functions: people's own and the built-in ones, found by name and called with a batch of text.

    def reward(*, prompts: Sequence[str], responses: Sequence[str], facts: Sequence[Mapping[str, str]], **arguments)
        -> Sequence[float | None | Graded]

None is no score. A function that also has a parameter ``tokens`` is given each response's tokens as text: the indices
of step rewards count them.
"""

from __future__ import annotations

import importlib
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.records import Graded
from rlhf_ray.rewards.texts import ResponseText, WrongShapeError, read_answer
from rlhf_ray.rewards.verifiable import BUILT_IN


@dataclass(frozen=True)
class Loaded:
    """The function can be called; it may have a parameter ``tokens``."""

    wants_tokens: bool


@dataclass(frozen=True)
class Failure:
    """The function could not be loaded, or a call of it failed; ``for_all``: it would for each response alone."""

    reason: str
    for_all: bool = False


def load(name: str, arguments: Mapping[str, Any]) -> RewardFunction | Failure:
    """The function of this name with its arguments, or why it cannot be called."""
    try:
        return RewardFunction(resolve(name), arguments)
    except Exception as error:  # noqa: BLE001 -- what people's modules raise as they are imported can be anything
        return Failure(_one_line(error))


def resolve(name: str) -> Callable[..., Any]:
    """The function ``package.module:name``, or the built-in of this name.

    Raises ImportError, AttributeError, LookupError or TypeError, and whatever the module raises.
    """
    if ":" not in name:
        if name not in BUILT_IN:
            raise LookupError(f"no built-in reward has this name, only {', '.join(sorted(BUILT_IN))}")
        return BUILT_IN[name]
    module, _, attribute = name.partition(":")
    function = operator.attrgetter(attribute)(importlib.import_module(module))
    if not callable(function):
        raise TypeError(f"it is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


class RewardFunction:
    """A function with its arguments. Raises TypeError where a call would."""

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        signature = inspect.signature(function)
        self.wants_tokens = "tokens" in signature.parameters
        self._function = function
        self._arguments = arguments
        signature.bind(**self._given([]), **arguments)

    def grade(self, texts: Sequence[ResponseText]) -> list[Graded] | Failure:
        """One answer a text, or why the call failed."""
        try:
            return read_answer(self._function(**self._given(texts), **self._arguments), len(texts))
        except WrongShapeError as error:  # asked one by one the same function might seem to answer rightly
            return Failure(str(error), for_all=True)
        except Exception as error:  # noqa: BLE001 -- people's functions raise anything, and the reason is logged
            return Failure(_one_line(error))

    def _given(self, texts: Sequence[ResponseText]) -> dict[str, Any]:
        given: dict[str, Any] = {
            "prompts": [text.prompt.text for text in texts],
            "responses": [text.response for text in texts],
            "facts": [dict(text.prompt.facts) for text in texts],
        }
        return {**given, "tokens": [text.tokens for text in texts]} if self.wants_tokens else given


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
