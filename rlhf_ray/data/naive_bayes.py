"""Multinomial naive Bayes for two classes: a judge small enough to be read, fitted on nobody else's data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_WORD = re.compile(r"[a-z']+")


def words_of(text: str) -> list[str]:
    """Return the lower-case runs of letters and apostrophes."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class NaiveBayes:
    """Per-word log odds, log p(word | positive) - log p(word | negative), with Laplace smoothing.

    The classes are taken as equally likely beforehand, and a word never seen in fitting says nothing: a text without
    known words has probability one half. The odds of the words multiply, so a long or repetitive text is judged with
    more confidence than it deserves; read it next to a measure of repetition.
    """

    log_odds: Mapping[str, float]

    @classmethod
    def fit(cls, positive: Iterable[str], negative: Iterable[str]) -> NaiveBayes:
        """Count words: log odds = log((n_pos(w) + 1) / (N_pos + V)) - log((n_neg(w) + 1) / (N_neg + V))."""
        liked = Counter(word for text in positive for word in words_of(text))
        disliked = Counter(word for text in negative for word in words_of(text))
        vocabulary = sorted(liked.keys() | disliked.keys())
        offset = math.log(disliked.total() + len(vocabulary)) - math.log(liked.total() + len(vocabulary))
        return cls({word: math.log(liked[word] + 1) - math.log(disliked[word] + 1) + offset for word in vocabulary})

    def score(self, text: str) -> float:
        """Return the log odds that the text is positive."""
        return sum(self.log_odds.get(word, 0.0) for word in words_of(text))

    def probability(self, text: str) -> float:
        """Return the probability, in [0, 1], that the text is positive."""
        return 0.5 * (1.0 + math.tanh(0.5 * self.score(text)))  # the logistic function without overflow
