"""Measures of what responses look like: length, diversity, repetition, style, refusals.

A reward model is a proxy, and these are where a policy that exploits it shows first. A word is what stands between
white space, case kept. A share is a fraction of the responses, in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_ray.errors import ConfigError

_LIST_LINE = re.compile(r"^\s*(?:[-*\u2022]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]+(?<=\S)\*\*|__(?=\S)[^_\n]+(?<=\S)__")
_ABLE = (
    r"help|assist|provide|give|answer|tell|share|discuss|support|do (?:that|this)|recommend|advise|offer|comply|fulfil"
)
_REFUSAL = re.compile(
    rf"\bi(?: can'?t| cannot| can not| won'?t| will not)(?: really| possibly)? (?:{_ABLE})"
    rf"|\bi(?:'m| am)(?: just)? (?:unable|not (?:able|willing|going|comfortable))\b"
    rf"|\b(?:sorry|apologi[sz]e),? (?:but )?i (?:can'?t|cannot|won'?t|don'?t think i can)\b"
    rf"|\bi (?:would|'d) (?:rather|prefer) not\b|\bi must (?:decline|refuse)\b|\bas an ai\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TextMeasures:
    """The measures of one set of responses, by their names in logs and reports."""

    num_responses: int
    mean_words: float
    distinct_1: float
    distinct_2: float
    repetition_3: float
    list_share: float
    bold_share: float
    refusal_share: float


def text_measures(texts: Sequence[str]) -> TextMeasures:
    """Return every measure of ``texts``; all are 0 where there is no response."""
    return TextMeasures(
        num_responses=len(texts),
        mean_words=mean_words(texts),
        distinct_1=distinct_n(texts, 1),
        distinct_2=distinct_n(texts, 2),
        repetition_3=mean_repetition(texts, 3),
        list_share=list_share(texts),
        bold_share=bold_share(texts),
        refusal_share=_share(texts, is_refusal),
    )


def num_words(text: str) -> int:
    return len(text.split())


def mean_words(texts: Sequence[str]) -> float:
    """Return the mean number of words in a response; 0 where there is no response."""
    return sum(num_words(text) for text in texts) / len(texts) if texts else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return different n-grams / all n-grams over the whole set (Li et al. 2016, arXiv:1510.03055).

    It falls with the number of responses by itself: compare sets of equal size only. N-grams do not cross responses.
    0 where no response has n words.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str, n: int) -> float:
    """Return the share of a response's n-grams that stood in it before: 1 - different / all; 0 below n words.

    "so good so good so good" has the bigrams "so good" x3 and "good so" x2: 1 - 2/5 = 0.6.
    """
    grams = _ngrams(text, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def mean_repetition(texts: Sequence[str], n: int) -> float:
    """Return the mean of :func:`repetition` over responses; 0 where there is none."""
    return sum(repetition(text, n) for text in texts) / len(texts) if texts else 0.0


def list_share(texts: Sequence[str]) -> float:
    """Return the share of responses with a line that starts as a list item: ``-``, ``*``, bullet, ``1.`` or ``1)``."""
    return _share(texts, lambda text: _LIST_LINE.search(text) is not None)


def bold_share(texts: Sequence[str]) -> float:
    """Return the share of responses with Markdown bold: ``**so**`` or ``__so__`` within a line."""
    return _share(texts, lambda text: _BOLD.search(text) is not None)


def is_refusal(text: str) -> bool:
    """Tell whether a response refuses, by set phrases of the first person ("I can't help", "I'm not able to", ...).

    A screen, not a judge: it misses refusals in other words and takes "I can't tell you how happy I am" for one.
    """
    return _REFUSAL.search(text.replace("\u2019", "'")) is not None


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ConfigError("n", n, "must be at least 1", "use 1 for words and 2 for pairs of words")
    words = text.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _share(texts: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(holds(text) for text in texts) / len(texts) if texts else 0.0
