"""Mode collapse and language drift: one answer for everything, words that nobody taught, characters out of place."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

Pair: TypeAlias = tuple[str, str]

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
REPLACEMENT = "\ufffd"  # stands where bytes are no text
PLAIN_SPACE = " \n\t\r"


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without what stands between them."""
    return WORD.findall(text.lower())


def word_pairs(text: str) -> list[Pair]:
    """Neighbouring words."""
    return list(pairwise(words_of(text)))


def same_answer(text: str) -> str:
    """What two texts share that say the same words, whatever their case and punctuation."""
    return " ".join(words_of(text))


# ------------------------------------------------------------------------------------------------------------- collapse
def common_answer(texts: Sequence[str]) -> float:
    """Return the share of responses that the most frequent answer has, in [0, 1]; 0 for none."""
    counts = Counter(map(same_answer, texts))
    return max(counts.values()) / len(texts) if texts else 0.0


def repeated_answers(texts: Sequence[str], prompt_ids: Sequence[str]) -> float:
    """Return the share of responses that also answer another prompt, word for word, in [0, 1]; 0 for none."""
    asked: dict[str, set[str]] = defaultdict(set)
    for text, prompt_id in zip(texts, prompt_ids, strict=True):
        asked[same_answer(text)].add(prompt_id)
    return sum(len(asked[same_answer(text)]) > 1 for text in texts) / len(texts) if texts else 0.0


def answer_entropy(texts: Sequence[str]) -> float:
    """Return the entropy of the answers over that of as many different ones, in [0, 1]: 0 says always the same.

    1 for a single response, which cannot repeat another.
    """
    if len(texts) < 2:
        return 1.0
    shares = [count / len(texts) for count in Counter(map(same_answer, texts)).values()]
    return max(0.0, -sum(share * math.log(share) for share in shares)) / math.log(len(texts))


# ---------------------------------------------------------------------------------------------------------------- drift
def odd_characters(texts: Sequence[str]) -> float:
    """Return the share of characters that are control, private or unassigned ones, or no text at all, in [0, 1]."""
    count = sum(map(len, texts))
    return sum(_is_odd(character) for text in texts for character in text) / count if count else 0.0


def unknown_share(texts: Sequence[str], known: Collection[str]) -> float:
    """Return the share of words that are not ``known``, in [0, 1]; numbers are always known. 0 for no words."""
    words = [word for text in texts for word in words_of(text)]
    return sum(_is_unknown(word, known) for word in words) / len(words) if words else 0.0


def novel_share(texts: Sequence[str], known: Collection[Pair]) -> float:
    """Return the share of neighbouring words that are no ``known`` pair, in [0, 1]; 0 where there are no two words.

    With the pairs of what a reward model was trained on it says how far a policy has left it: there the model guesses.
    """
    pairs = [pair for text in texts for pair in word_pairs(text)]
    return sum(pair not in known for pair in pairs) / len(pairs) if pairs else 0.0


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """Every word of ``texts``."""
    return frozenset(word for text in texts for word in words_of(text))


def known_pairs(texts: Iterable[str]) -> frozenset[Pair]:
    """Every pair of neighbouring words in ``texts``."""
    return frozenset(pair for text in texts for pair in word_pairs(text))


def _is_unknown(word: str, known: Collection[str]) -> bool:
    return word not in known and not word.isdecimal()


def _is_odd(character: str) -> bool:
    if character in PLAIN_SPACE:
        return False
    return character == REPLACEMENT or unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs")
