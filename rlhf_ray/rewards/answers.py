"""Finding the answer in a response, and comparing answers: what the programmatic rewards agree on."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MARKED = re.compile(
    r"####\s*(?P<hashes>[^\n]+)"
    r"|\b(?:the\s+)?(?:final\s+)?answer\s*(?:is\b\s*:?|:|=)\s*(?P<said>[^\n]+)",
    re.IGNORECASE,
)
SURROUNDING = " \t\r\n.,;:!?\"'`*$()[]{}"
LONGEST_NUMBER = 60  # characters; a longer one is no answer, and exact arithmetic with it takes its time
NUMBER = re.compile(
    r"\\[dt]?frac\{(?P<above>-?\d+)\}\{(?P<below>\d+)\}"
    r"|(?P<sign>(?<![\w)\]])-)?\s?\$?(?P<whole>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<divisor>\d+(?:\.\d+)?))?"
)


def marked_answer(text: str) -> str | None:
    r"""What stands in the last ``\boxed{}``, else after the last ``####``, ``answer is`` or ``answer:`` of ``text``."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    found = list(MARKED.finditer(text))
    return (found[-1]["hashes"] or found[-1]["said"]) if found else None


def last_answer(text: str) -> str:
    """The marked answer, else the last line that is not empty."""
    marked = marked_answer(text)
    if marked is not None:
        return marked
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth = start + len("\\boxed{"), 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def normalised(answer: str) -> str:
    """Without case, width, outer punctuation and runs of spaces: `` "The Moon." `` is ``the moon``."""
    text = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return text.strip(SURROUNDING)


def last_number(text: str) -> Fraction | None:
    """The last number of ``text``, exactly: ``1,000.``, ``-.5``, ``3/4`` and ``\\frac{3}{4}`` are numbers.

    A minus belongs to a number unless something stands right before it: 5-3 ends with 3.
    """
    numbers = [
        value for match in NUMBER.finditer(text.replace("\N{MINUS SIGN}", "-")) if (value := _value(match)) is not None
    ]
    return numbers[-1] if numbers else None


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > LONGEST_NUMBER:
        return None
    if match["below"] is not None:
        return Fraction(int(match["above"]), int(match["below"])) if int(match["below"]) else None
    divisor = Fraction(match["divisor"]) if match["divisor"] else Fraction(1)
    if divisor == 0:
        return None
    value = Fraction(match["whole"].replace(",", "")) / divisor
    return -value if match["sign"] else value
