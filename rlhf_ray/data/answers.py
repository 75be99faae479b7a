"""Tell whether a response gives the recorded answer: a check by rule, where a prompt has one right answer."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_EDGES = " \t\n\r.,;:!?\"'*`$()[]"


def gives_answer(response: str, answer: str) -> bool:
    """Compare what a response ends on with ``answer``.

    A numeric answer must equal the last number of the response ("so 1,200 in all." gives "1200", and 3.0 is 3). Any
    other answer must be the last line that is not empty, case, outer punctuation and runs of white space aside.
    """
    expected = answer.strip()
    if _NUMBER.fullmatch(expected):
        numbers = _NUMBER.findall(response)
        return bool(numbers) and _value(numbers[-1]) == _value(expected)
    lines = [line for line in map(_plain, response.splitlines()) if line]
    return bool(lines) and lines[-1] == _plain(expected)


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(_EDGES)
