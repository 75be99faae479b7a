"""Continue a movie review positively: sentences that many people rated, and judges that the reward model never met.

Data: Hutto and Gilbert, "VADER", ICWSM-14 (github.com/cjhutto/vaderSentiment, MIT for the ratings and the lexicon). The
sentences are Rotten Tomatoes snippets first published by Pang and Lee, without a licence of their own.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias

from rlhf_ray.data.jsonl import decode, read_bytes
from rlhf_ray.data.naive_bayes import NaiveBayes, words_of
from rlhf_ray.data.recorded import digest, no_annotators, require_file
from rlhf_ray.data.task import Split, Task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.metrics.text import num_words
from rlhf_ray.records import Demonstration, Message, Ranking, TextPrompt

Part: TypeAlias = Literal["judge", "test", "train"]

SENTENCES_FILE = "movieReviewSnippets_GroundTruth.txt.gz"
LEXICON_FILE = "vader_sentiment_lexicon.txt.gz"
ANNOTATOR = "mean of 15 to 29 raters"
MIN_CONTINUATION_WORDS = 2
ATTEMPTS_PER_RANKING = 200  # of the real sentences four pass in one draw of 20, five in one of 250

_PARTS: Mapping[Split, Part] = {"train": "train", "heldout": "test"}


@dataclass(frozen=True)
class MovieSentimentConfig:
    """Where the files are, and how prompts and rankings are cut from them.

    A ranking has ``responses_per_ranking`` different sentences whose mean ratings, on a scale from -4 to 4, all lie at
    least ``min_difference`` apart.
    """

    path: str
    seed: int = 0
    min_opening_words: int = 2
    max_opening_words: int = 4
    num_rankings: int = 4000
    num_heldout_rankings: int = 1000
    responses_per_ranking: int = 2
    min_difference: float = 1.0

    def __post_init__(self) -> None:
        if self.min_opening_words < 1:
            raise ConfigError(
                "data.movie_sentiment.min_opening_words", self.min_opening_words, "must be at least 1", "try 2"
            )
        if self.max_opening_words < self.min_opening_words:
            rule = f"must be at least data.movie_sentiment.min_opening_words ({self.min_opening_words})"
            raise ConfigError(
                "data.movie_sentiment.max_opening_words",
                self.max_opening_words,
                rule,
                f"try {self.min_opening_words + 2}",
            )
        for name, count in (("num_rankings", self.num_rankings), ("num_heldout_rankings", self.num_heldout_rankings)):
            if count < 0:
                raise ConfigError(f"data.movie_sentiment.{name}", count, "must not be negative", "try 1000")
        if not 2 <= self.responses_per_ranking <= 4:
            raise ConfigError(
                "data.movie_sentiment.responses_per_ranking", self.responses_per_ranking, "must be in [2, 4]", "try 2"
            )
        if not 0.0 < self.min_difference <= 8.0:
            raise ConfigError(
                "data.movie_sentiment.min_difference", self.min_difference, "must be in (0, 8]", "try 1.0"
            )


@dataclass(frozen=True)
class Sentence:
    sentence_id: str
    rating: float  # mean of the raters, in [-4, 4]
    text: str  # single spaces, none at the ends

    @property
    def part(self) -> Part:
        """The part by md5 of the id, for good: 25% judge, 10% test, 65% train."""
        bucket = int(hashlib.md5(self.sentence_id.encode(), usedforsecurity=False).hexdigest(), 16) % 100
        return "judge" if bucket < 25 else "test" if bucket < 35 else "train"


class MovieSentimentTask(Task):
    """Openings of reviews as prompts, people's ratings as rankings, a naive Bayes classifier as the gold judge.

    A demonstration is a whole sentence of either sentiment, cut after its first words: the user message is the opening,
    the assistant's is the rest with its leading space, so that joining both restores the sentence. A ranking compares
    whole sentences under an empty user message. Held-out sentences are never training sentences, no held-out prompt is
    a training prompt, and the judge's sentences are in neither.
    """

    def __init__(self, config: MovieSentimentConfig) -> None:
        """Read the files; ConfigError names ``data.movie_sentiment.path`` where one is missing."""
        self.config = config
        folder = Path(config.path)
        remedy = "point data.movie_sentiment.path to the folder with the VADER movie review files"
        files = [
            require_file(folder / name, field="data.movie_sentiment.path", remedy=remedy)
            for name in (SENTENCES_FILE, LEXICON_FILE)
        ]
        self._sentences = without_repeats(read_sentences(files[0]))
        self._valence = read_lexicon(files[1])
        self._judge = fit_judge(self._sentences)
        self._fingerprint = digest([*self._sentences, self._valence, replace(config, path="")])

    @property
    def has_annotators(self) -> bool:
        return False

    @property
    def judge(self) -> NaiveBayes:
        """The gold judge, for evaluation only."""
        return self._judge

    def demonstrations(self, split: Split) -> list[Demonstration]:
        return [
            Demonstration(f"movie/{sentence.sentence_id}", (Message("user", opening), Message("assistant", rest)))
            for sentence, opening, rest in self._cut(split)
        ]

    def prompts(self, split: Split) -> list[TextPrompt]:
        """Openings, as often as sentences begin so; held-out ones without those that also open a training sentence."""
        seen = {opening for _, opening, _ in self._cut("train")} if split == "heldout" else set()
        return [
            TextPrompt(f"movie/{sentence.sentence_id}", (Message("user", opening),))
            for sentence, opening, _ in self._cut(split)
            if opening not in seen
        ]

    def rankings(self, split: Split) -> list[Ranking]:
        """Different groups of sentences, drawn uniformly among those far enough apart; rank 0 is the most positive."""
        count = self.config.num_rankings if split == "train" else self.config.num_heldout_rankings
        groups = self._groups(self.sentences(_PARTS[split]), count, random.Random(f"{self.config.seed}/{split}"))
        return [_ranking(f"movie/{split}/{number}", group) for number, group in enumerate(groups)]

    def rank(self, prompt: TextPrompt, responses: Sequence[str], seed: int) -> list[Ranking]:
        raise no_annotators("movie_sentiment")

    def grade(self, prompt: TextPrompt, response: str) -> Mapping[str, float]:
        """Grade the response alone, so that the opening, which the policy did not write, counts for nothing.

        gold: probability of being positive by naive Bayes on the judge's sentences (0.5 for an empty response).
        valence: mean human valence, in [-4, 4], of its words in the VADER lexicon (0 without any). words: how many.
        """
        valences = [self._valence[word] for word in words_of(response) if word in self._valence]
        return {
            "gold": self._judge.probability(response),
            "valence": sum(valences) / len(valences) if valences else 0.0,
            "words": float(num_words(response)),
        }

    def fingerprint(self) -> str:
        return self._fingerprint

    def sentences(self, part: Part) -> list[Sentence]:
        return [sentence for sentence in self._sentences if sentence.part == part]

    def _cut(self, split: Split) -> list[tuple[Sentence, str, str]]:
        """(sentence, opening, continuation) of every sentence that is long enough."""
        cuts = []
        for sentence in self.sentences(_PARTS[split]):
            words = sentence.text.split(" ")
            rng = random.Random(f"{self.config.seed}/{sentence.sentence_id}")
            length = rng.randint(self.config.min_opening_words, self.config.max_opening_words)
            if len(words) - length >= MIN_CONTINUATION_WORDS:
                cuts.append((sentence, " ".join(words[:length]), " " + " ".join(words[length:])))
        return cuts

    def _groups(self, sentences: Sequence[Sentence], count: int, rng: random.Random) -> list[tuple[Sentence, ...]]:
        size, apart = self.config.responses_per_ranking, self.config.min_difference
        groups: dict[frozenset[str], tuple[Sentence, ...]] = {}
        attempts = ATTEMPTS_PER_RANKING * count if len(sentences) >= size else 0
        while len(groups) < count and attempts:
            attempts -= 1
            group = tuple(rng.sample(sentences, size))
            if _least_difference(group) >= apart:
                groups.setdefault(frozenset(sentence.sentence_id for sentence in group), group)
        if len(groups) < count:
            rule = (
                f"leaves {len(groups)} of {count} rankings with ratings {apart} apart among {len(sentences)} sentences"
            )
            raise ConfigError(
                "data.movie_sentiment.responses_per_ranking",
                size,
                rule,
                "lower it, data.movie_sentiment.min_difference or the number",
            )
        return list(groups.values())


def read_sentences(path: Path) -> list[Sentence]:
    """Read lines of ``id TAB mean rating TAB text``; DataError names the line that is not one."""
    rows = enumerate(decode(read_bytes(path), str(path)).splitlines(), start=1)
    return [_sentence(line, f"{path}:{number}") for number, line in rows]


def read_lexicon(path: Path) -> dict[str, float]:
    """Read lines of ``word TAB mean valence TAB ...``; of a word that stands twice the last counts."""
    valence = {}
    # Some emoticons of the file are single bytes above 127: Latin-1 keeps them apart and never fails.
    for number, line in enumerate(read_bytes(path).decode("latin-1").split("\n"), start=1):
        if line.strip():
            word, _, rest = line.partition("\t")
            valence[word] = _rating(rest.partition("\t")[0], f"{path}:{number}")
    return valence


def without_repeats(sentences: Sequence[Sentence]) -> list[Sentence]:
    """Keep the first of sentences that differ in id only, which would otherwise stand on both sides of a split."""
    first: dict[str, Sentence] = {}
    for sentence in sentences:
        first.setdefault(sentence.text.lower(), sentence)
    return list(first.values())


def fit_judge(sentences: Sequence[Sentence]) -> NaiveBayes:
    """Fit on the judge's part alone: mean rating above 0 against below 0."""
    own = [sentence for sentence in sentences if sentence.part == "judge"]
    return NaiveBayes.fit([s.text for s in own if s.rating > 0], [s.text for s in own if s.rating < 0])


def _sentence(line: str, where: str) -> Sentence:
    fields = line.split("\t")
    if len(fields) != 3:
        raise DataError(f"{where}: {len(fields)} fields between tabs; a line is id, mean rating, text")
    return Sentence(fields[0].strip(), _rating(fields[1], where), " ".join(fields[2].split()))


def _rating(text: str, where: str) -> float:
    try:
        rating = float(text)
    except ValueError:
        rating = math.nan
    if not -4.0 <= rating <= 4.0:
        raise DataError(f"{where}: the second field is {text[:20]!r}; it must be a mean rating in [-4, 4]")
    return rating


def _least_difference(group: Sequence[Sentence]) -> float:
    ratings = sorted(sentence.rating for sentence in group)
    return min(high - low for low, high in pairwise(ratings))


def _ranking(prompt_id: str, group: Sequence[Sentence]) -> Ranking:
    ranks = tuple(sum(other.rating > sentence.rating for other in group) for sentence in group)
    texts = tuple(sentence.text for sentence in group)
    return Ranking(prompt_id, (Message("user", ""),), texts, ranks, ANNOTATOR)
