"""Programmatic rewards: 1 where a response does what was asked, 0 where it does not.

A source takes one of them by its name, as in ``function: exact_answer``.

The answer that is right is the prompt's fact ``answer``; a prompt without it cannot be scored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from rlhf_ray.records import Graded
from rlhf_ray.rewards.answers import last_answer, last_number, marked_answer, normalised

Facts: TypeAlias = Sequence[Mapping[str, str]]

NO_ANSWER = Graded(None, failed="its prompt has no fact 'answer'")
FENCED = re.compile(r"```(?:json)?\s*\n(?P<inside>.*)\n\s*```", re.DOTALL)
LETTER_IN_BRACKETS = re.compile(r"\(([A-Za-z])\)")
LETTER_ALONE = re.compile(r"\W*([A-Za-z])\W*")
LETTER_FIRST = re.compile(r"\W*(?:option\s+|choice\s+)?\W*([A-Za-z])(?![A-Za-z'\u2019])", re.IGNORECASE)


def exact_answer(*, prompts: Sequence[str], responses: Sequence[str], facts: Facts) -> list[float | Graded]:
    r"""1 where the response's last answer, normalised, is the right one, normalised the same way.

    The last answer is what the last ``\boxed{}`` holds, else what follows the last ``####``, ``answer is`` or
    ``answer:`` on its line, else the last line. Case, outer punctuation and runs of spaces do not count.
    """

    def right(response: str, answer: str) -> float:
        return float(normalised(last_answer(response)) == normalised(answer))

    return _against_answers(responses, facts, right)


def number_answer(
    *, prompts: Sequence[str], responses: Sequence[str], facts: Facts, tolerance: float = 0.0
) -> list[float | Graded]:
    r"""1 where the last number of the marked answer, or else of the response, is within ``tolerance`` of the right one.

    Numbers are compared exactly, as fractions: 0.75, .75, 3/4 and ``\frac{3}{4}`` are one number, and so are 1,000 and
    1000.0.
    """

    def right(response: str, answer: str) -> float | Graded:
        wanted = last_number(answer)
        if wanted is None:
            return Graded(None, failed=f"the fact 'answer' holds no number: {answer!r:.80}")
        found = last_number(marked_answer(response) or response)
        return float(found is not None and abs(found - wanted) <= tolerance)

    return _against_answers(responses, facts, right)


def choice_answer(
    *, prompts: Sequence[str], responses: Sequence[str], facts: Facts, choices: str = "ABCDE"
) -> list[float | Graded]:
    """1 where the response chooses the right letter.

    The choice is the letter that the marked answer begins with, else the last one in brackets, else a last line that is
    a letter and nothing else; an ``A`` inside a sentence is no choice.
    """

    def right(response: str, answer: str) -> float | Graded:
        wanted = _letter(LETTER_ALONE.fullmatch(answer), choices) or _choice(answer, choices)
        if wanted is None:
            return Graded(None, failed=f"the fact 'answer' is none of {', '.join(choices)}: {answer!r:.80}")
        return float(_choice(response, choices) == wanted)

    return _against_answers(responses, facts, right)


def _choice(response: str, choices: str) -> str | None:
    marked = marked_answer(response)
    if marked is not None and (letter := _letter(LETTER_FIRST.match(marked), choices)):
        return letter
    bracketed: list[str] = [found.upper() for found in LETTER_IN_BRACKETS.findall(response) if found.upper() in choices]
    if bracketed:
        return bracketed[-1]
    last_line = last_answer(response)
    return _letter(LETTER_ALONE.fullmatch(last_line), choices)


def _letter(match: re.Match[str] | None, choices: str) -> str | None:
    if match is None or match[1].upper() not in choices:
        return None
    return str(match[1]).upper()


def regex_match(*, prompts: Sequence[str], responses: Sequence[str], facts: Facts, pattern: str) -> list[float]:
    """1 where ``pattern`` is found anywhere in the response; flags are written into it, as ``(?is)``."""
    compiled = re.compile(pattern)
    return [float(compiled.search(response) is not None) for response in responses]


def json_valid(
    *, prompts: Sequence[str], responses: Sequence[str], facts: Facts, required: Sequence[str] = ()
) -> list[float]:
    """1 where the whole response, or the block in ``` that it consists of, is JSON.

    With ``required`` it must be an object that has all these keys. NaN and Infinity are no JSON.
    """
    return [float(_is_json(response, required)) for response in responses]


def _is_json(response: str, required: Sequence[str]) -> bool:
    fenced = FENCED.fullmatch(response.strip())
    try:
        value = json.loads(fenced["inside"] if fenced else response, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return False
    return not required or (isinstance(value, dict) and set(required) <= value.keys())


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def length_at_most(
    *,
    prompts: Sequence[str],
    responses: Sequence[str],
    facts: Facts,
    limit: int,
    unit: Literal["words", "characters"] = "words",
) -> list[float]:
    """1 where the response has at most ``limit`` words (what spaces separate) or characters."""
    if unit not in ("words", "characters"):
        raise ValueError(f"unit ({unit!r}) must be words or characters")
    lengths = [len(response.split()) if unit == "words" else len(response) for response in responses]
    return [float(length <= limit) for length in lengths]


def _against_answers(
    responses: Sequence[str], facts: Facts, right: Callable[[str, str], float | Graded]
) -> list[float | Graded]:
    return [
        right(response, known["answer"]) if known.get("answer") else NO_ANSWER
        for response, known in zip(responses, facts, strict=True)
    ]


BUILT_IN: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (exact_answer, number_answer, choice_answer, regex_match, json_valid, length_at_most)
}
