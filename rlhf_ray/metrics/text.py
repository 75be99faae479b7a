"""Measures of what responses look like: length, diversity, repetition, style, refusals.

A reward model is a proxy, and these are where a policy that exploits it shows first. A word is what stands between
white space, case kept. A share is a fraction of the responses, in [0, 1].
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from rlhf_ray.errors import ConfigError

_LIST_LINE = re.compile(r"^\s*(?:[-*\u2022]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]+(?<=\S)\*\*|__(?=\S)[^_\n]+(?<=\S)__")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+\S", re.MULTILINE)
_EMOJI = re.compile("[\u2600-\u27bf\U0001f300-\U0001faff]")
_APOLOGY = re.compile(r"\b(?:sorry|apologi[sz]e|my apologies)\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"\bi (?:think|believe|guess|suppose)\b|\bi(?:'m| am) not (?:completely |entirely |quite )?(?:sure|certain)\b"
    r"|\b(?:perhaps|maybe|possibly|it seems|it may be|it might be|probably)\b",
    re.IGNORECASE,
)
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
_AGREEMENT = re.compile(
    r"\W*(?:yes|yeah|indeed|exactly|correct|certainly|absolutely"
    r"|(?:you(?:'re| are)|that(?:'s| is)) (?:(?:so|quite|very|absolutely|completely) )?(?:right|correct|true))\b",
    re.IGNORECASE,
)


def text_measures(texts: Sequence[str], prompt_ids: Sequence[str] = ()) -> dict[str, float]:
    """Return every measure of ``texts`` by its name in logs; all are 0 where there is no response.

    ``prompt_ids`` name the prompt of each text: where a prompt has several responses, ``self_bleu`` is among them.
    """
    measures = {name: measure(texts) for name, measure in MEASURES.items()}
    groups: dict[str, list[str]] = defaultdict(list)
    for prompt_id, text in zip(prompt_ids, texts, strict=bool(prompt_ids)):
        groups[prompt_id].append(text)
    several = [own for own in groups.values() if len(own) > 1]
    return {**measures, "self_bleu": self_bleu(several)} if several else measures


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


def heading_share(texts: Sequence[str]) -> float:
    """Return the share of responses with a Markdown heading."""
    return _share(texts, lambda text: _HEADING.search(text) is not None)


def emoji_share(texts: Sequence[str]) -> float:
    """Return the share of responses with an emoji or another pictograph."""
    return _share(texts, lambda text: _EMOJI.search(text) is not None)


def hedge_share(texts: Sequence[str]) -> float:
    """Return the share of responses with a set phrase of doubt ("I think", "perhaps", "I'm not sure", ...)."""
    return _share(texts, lambda text: _HEDGE.search(_plain(text)) is not None)


def apology_share(texts: Sequence[str]) -> float:
    """Return the share of responses that apologise ("sorry", "I apologise", "my apologies")."""
    return _share(texts, lambda text: _APOLOGY.search(text) is not None)


def is_refusal(text: str) -> bool:
    """Tell whether a response refuses, by set phrases of the first person ("I can't help", "I'm not able to", ...).

    A screen, not a judge: it misses refusals in other words and takes "I can't tell you how happy I am" for one.
    """
    return _REFUSAL.search(_plain(text)) is not None


def agrees(text: str) -> bool:
    """Tell whether a response begins with agreement, by set phrases ("Yes", "You are right", "That's true", ...)."""
    return _AGREEMENT.match(_plain(text)) is not None


def self_bleu(groups: Sequence[Sequence[str]]) -> float:
    """Return the mean over responses of their BLEU against the other responses to the same prompt; 0 for none.

    1 says that a prompt has one answer whatever is drawn (Zhu et al. 2018, arXiv:1802.01886). Groups have two texts or
    more.
    """
    values = [bleu(text, [*own[:i], *own[i + 1 :]]) for own in groups for i, text in enumerate(own)]
    return sum(values) / len(values) if values else 0.0


def bleu(text: str, references: Sequence[str]) -> float:
    """Return BLEU of one sentence, in [0, 1] (Papineni et al. 2002), of 1 to 4 words, as many as the text has.

    One is added to both counts of two words and more (Lin and Och 2004), so that a short text without a common
    sequence of four words is not 0 by itself.
    """
    words = text.split()
    if not words or not references:
        return 0.0
    log_precision, orders = 0.0, min(4, len(words))
    for n in range(1, orders + 1):
        own = Counter(_ngrams(text, n))
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            allowed |= Counter(_ngrams(reference, n))
        matched, added = sum((own & allowed).values()), int(n > 1)
        if matched + added == 0:
            return 0.0
        log_precision += math.log((matched + added) / (sum(own.values()) + added)) / orders
    nearest = min((num_words(reference) for reference in references), key=lambda n: (abs(n - len(words)), n))
    return math.exp(min(0.0, 1.0 - nearest / len(words)) + log_precision)


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ConfigError("n", n, "must be at least 1", "use 1 for words and 2 for pairs of words")
    words = text.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _plain(text: str) -> str:
    return text.replace("\u2019", "'")


def _share(texts: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(holds(text) for text in texts) / len(texts) if texts else 0.0


MEASURES: Mapping[str, Callable[[Sequence[str]], float]] = {
    "words": mean_words,
    "distinct_1": lambda texts: distinct_n(texts, 1),
    "distinct_2": lambda texts: distinct_n(texts, 2),
    "repetition_3": lambda texts: mean_repetition(texts, 3),
    "lists": list_share,
    "bold": bold_share,
    "headings": heading_share,
    "emoji": emoji_share,
    "hedges": hedge_share,
    "apologies": apology_share,
    "refusals": lambda texts: _share(texts, is_refusal),
    "agreements": lambda texts: _share(texts, agrees),
}
