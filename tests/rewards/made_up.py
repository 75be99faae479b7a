"""Reward functions as people write them, good ones and bad ones. Loaded by name, in a process of their own."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_ray.records import Graded

CALLS = itertools.count(1)
NOT_A_FUNCTION = 3

Facts = Sequence[Mapping[str, str]]


def length(*, prompts: Sequence[str], responses: Sequence[str], facts: Facts, scale: float = 1.0) -> list[float]:
    return [scale * len(response) for response in responses]


def facts_and_prompts(*, prompts: Sequence[str], responses: Sequence[str], facts: Facts) -> list[float]:
    return [float(f"{p}+{k['n']}={r}" == "a\nb+7=c") for p, r, k in zip(prompts, responses, facts, strict=True)]


def whatever(*, prompts: Sequence[str], responses: Sequence[str], facts: Facts, answer: Any) -> Any:
    """Answers what it is told to."""
    return answer


def arrays(*, prompts: Sequence[str], responses: Sequence[str], facts: Facts) -> Any:
    return np.arange(len(responses), dtype=np.float32) / 4


def by_token(
    *, prompts: Sequence[str], responses: Sequence[str], facts: Facts, tokens: Sequence[Sequence[str]]
) -> list[Graded]:
    return [Graded(1.0, tuple((i, 0.5) for i, token in enumerate(row) if token == ".")) for row in tokens]


def by_words(*, prompts: Sequence[str], responses: Sequence[str], facts: Facts) -> list[float | None]:
    """Does what a response says."""
    return [_obey(response) for response in responses]


def _obey(response: str) -> float | None:
    match response:
        case "raise":
            raise ValueError("cannot\nread this")
        case "sleep":
            time.sleep(60)
        case "backtrack":  # holds the interpreter: no thread and no signal handler of Python's would ever run
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "exit":
            sys.exit(0)
        case "die":
            os._exit(3)
        case "none":
            return None
        case "nan":
            return float("nan")
        case "print":
            print("this is no answer")
    return float(len(response))


def counting(*, prompts: Sequence[str], responses: Sequence[str], facts: Facts) -> list[float]:
    """How many calls this process has seen."""
    return [float(next(CALLS))] * len(responses)
