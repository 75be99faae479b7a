"""The movie task: on a few sentences written here by hand, and the facts that we state of the real ones."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rlhf_ray.data.movie_sentiment import (
    LEXICON_FILE,
    SENTENCES_FILE,
    MovieSentimentConfig,
    MovieSentimentTask,
    Sentence,
    read_lexicon,
    read_sentences,
)
from rlhf_ray.data.naive_bayes import NaiveBayes
from rlhf_ray.data.task import Split, Task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.records import Message, TextPrompt

LEXICON = "good\t2.0\t0.1\t[2]\nbad\t-3.0\t0.1\t[-3]\ngood\t1.5\t0.1\t[1]\n:)\t2.0\t0.1\t[2]\n"
PROMPT = TextPrompt("p", (Message("user", "A good"),))
SPLITS: tuple[Split, ...] = ("train", "heldout")


def write_files(folder: Path, rows: Sequence[tuple[float, str]]) -> None:
    lines = "".join(f"{number}\t{rating}\t{text}\r\n" for number, (rating, text) in enumerate(rows, start=1))
    (folder / SENTENCES_FILE).write_bytes(gzip.compress(lines.encode()))
    (folder / LEXICON_FILE).write_bytes(gzip.compress(LEXICON.encode() + b"\xe9)\t1.0\t0\t[1]\n"))


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., MovieSentimentTask]:
    """400 sentences, rated by whether they call the film good or bad and by how loudly."""
    words = ["good", "bad"]
    rows = [
        (
            (2.5 if number % 2 == 0 else -2.5) + (number % 7) / 10,
            f"Film {number} is a  {words[number % 2]} film of its year.",
        )
        for number in range(400)
    ]
    write_files(tmp_path, rows)

    def build(**settings: int | float) -> MovieSentimentTask:
        return MovieSentimentTask(
            MovieSentimentConfig(**({"path": str(tmp_path), "num_rankings": 50, "num_heldout_rankings": 20} | settings))  # type: ignore[arg-type]
        )

    return build


def test_opening_and_continuation_make_the_sentence_again(small: Callable[..., MovieSentimentTask]) -> None:
    task = small()
    shown = task.demonstrations("train")
    sentences = {f"movie/{sentence.sentence_id}": sentence.text for sentence in task.sentences("train")}
    assert len(shown) == len(sentences)
    for demonstration in shown:
        opening, rest = demonstration.messages
        assert (opening.role, rest.role) == ("user", "assistant")
        assert opening.content + rest.content == sentences[demonstration.demonstration_id]
        assert 2 <= len(opening.content.split()) <= 4
        assert rest.content.startswith(" ")


def test_the_seed_decides_where_a_sentence_is_cut(small: Callable[..., MovieSentimentTask]) -> None:
    assert small().prompts("train") == small().prompts("train")
    assert small().prompts("train") != small(seed=1).prompts("train")


def test_sentences_too_short_to_be_continued_are_no_demonstrations(tmp_path: Path) -> None:
    write_files(tmp_path, [(1.0, f"Short {number}.") for number in range(200)])
    task = MovieSentimentTask(MovieSentimentConfig(str(tmp_path)))
    assert len(task.sentences("train")) > 100
    assert task.demonstrations("train") == []


def test_train_heldout_and_judge_share_no_sentence(small: Callable[..., MovieSentimentTask]) -> None:
    task = small()
    ranked = {
        split: {text for ranking in task.rankings(split) for text in ranking.responses}
        | {"".join(message.content for message in shown.messages) for shown in task.demonstrations(split)}
        for split in SPLITS
    }
    judged = {sentence.text for sentence in task.sentences("judge")}
    assert not ranked["train"] & ranked["heldout"]
    assert not (ranked["train"] | ranked["heldout"]) & judged


def test_no_heldout_prompt_is_a_training_prompt(tmp_path: Path) -> None:
    write_files(tmp_path, [(1.0, f"It is number {number} of many films") for number in range(300)])
    task = MovieSentimentTask(MovieSentimentConfig(str(tmp_path), min_opening_words=2, max_opening_words=3))
    assert {len(shown.messages[0].content.split()) for shown in task.demonstrations("heldout")} == {2, 3}
    assert task.prompts("heldout") == []  # every sentence opens with "It is" or "It is number", training ones too


def test_a_sentence_that_stands_twice_counts_once(tmp_path: Path) -> None:
    write_files(tmp_path, [(1.0, "The same old story"), (2.0, "The  Same old story "), (0.5, "Another story")])
    task = MovieSentimentTask(MovieSentimentConfig(str(tmp_path)))
    parts = [task.sentences("train"), task.sentences("test"), task.sentences("judge")]
    assert sorted(sentence.text for part in parts for sentence in part) == ["Another story", "The same old story"]


def test_rank_zero_is_the_sentence_people_rated_highest(small: Callable[..., MovieSentimentTask]) -> None:
    task = small(responses_per_ranking=2)
    ratings = {sentence.text: sentence.rating for sentence in task.sentences("train")}
    rankings = task.rankings("train")
    assert len({frozenset(ranking.responses) for ranking in rankings}) == 50
    for ranking in rankings:
        ((winner, loser),) = ranking.pairs
        assert ratings[ranking.responses[winner]] - ratings[ranking.responses[loser]] >= 1.0
        assert ranking.messages == (Message("user", ""),)


def test_groups_of_three_are_apart_by_the_least_difference(data_folder: Path) -> None:
    config = MovieSentimentConfig(str(data_folder / "movie_sentiment"), num_rankings=100, responses_per_ranking=3)
    task = MovieSentimentTask(config)
    ratings = {sentence.text: sentence.rating for sentence in task.sentences("train")}
    for ranking in task.rankings("train"):
        best, middle, worst = sorted((ratings[text] for text in ranking.responses), reverse=True)
        assert best - middle >= 1.0
        assert middle - worst >= 1.0
        assert sorted(ranking.ranks) == [0, 1, 2]


def test_too_few_rankings_are_an_error_that_says_how_many_there_are(small: Callable[..., MovieSentimentTask]) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.movie_sentiment\.responses_per_ranking \(3\) leaves 0 of 50 rankings"
    ):
        small(responses_per_ranking=3).rankings("train")  # the ratings form two clouds


def test_gold_is_the_probability_of_the_continuation_alone(small: Callable[..., MovieSentimentTask]) -> None:
    task = small()
    good, bad, empty = (task.grade(PROMPT, response) for response in (" good film", " bad film", ""))
    assert good["gold"] > 0.95
    assert bad["gold"] < 0.05
    assert empty == {"gold": 0.5, "valence": 0.0, "words": 0.0}  # though the prompt itself says "good"


def test_valence_is_the_mean_over_the_words_of_the_lexicon(small: Callable[..., MovieSentimentTask]) -> None:
    graded = small().grade(PROMPT, " Good, bad and good beyond words")
    assert graded["valence"] == pytest.approx((1.5 - 3.0 + 1.5) / 3)
    assert graded["words"] == 6.0


def test_naive_bayes_is_the_ratio_of_smoothed_frequencies() -> None:
    judge = NaiveBayes.fit(positive=["Good film", "good"], negative=["bad film"])
    # Vocabulary good, film, bad: 3. Positive words 3, negative 2.
    assert judge.score("good") == pytest.approx(math.log((2 + 1) / (3 + 3)) - math.log((0 + 1) / (2 + 3)))
    assert judge.score("bad film unseen") == pytest.approx(math.log((1 / 6) / (2 / 5)) + math.log((2 / 6) / (2 / 5)))
    assert judge.probability("good") == pytest.approx((3 / 6) / (3 / 6 + 1 / 5))
    assert NaiveBayes({"x": 1.0}).probability("x " * 5000) == 1.0


def test_nobody_ranks_new_responses(small: Callable[..., MovieSentimentTask]) -> None:
    task = small()
    assert isinstance(task, Task)
    assert not task.has_annotators
    with pytest.raises(DataError, match="recorded judgements only"):
        task.rank(PROMPT, [" a", " b"], seed=0)


def test_the_fingerprint_follows_content_and_settings_not_the_folder(tmp_path: Path) -> None:
    rows = [(float(number % 4), f"Sentence number {number} is here") for number in range(50)]
    prints = []
    for name, content, seed in (("a", rows, 0), ("b", rows, 0), ("c", rows[:-1], 0), ("d", rows, 1)):
        (tmp_path / name).mkdir()
        write_files(tmp_path / name, content)
        prints.append(MovieSentimentTask(MovieSentimentConfig(str(tmp_path / name), seed=seed)).fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_missing_file_is_named_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"data\.movie_sentiment\.path \('.*{SENTENCES_FILE}'\) must be a file that exists"
    ):
        MovieSentimentTask(MovieSentimentConfig(str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"min_opening_words": 0}, "data.movie_sentiment.min_opening_words"),
        ({"max_opening_words": 1}, "data.movie_sentiment.max_opening_words"),
        ({"num_heldout_rankings": -1}, "data.movie_sentiment.num_heldout_rankings"),
        ({"responses_per_ranking": 5}, "data.movie_sentiment.responses_per_ranking"),
        ({"min_difference": 0.0}, "data.movie_sentiment.min_difference"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MovieSentimentConfig("here", **settings)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("line", "what"), [("2\t1.0", "2 fields"), ("2\tgreat\tA film", "'great'"), ("2\t4.5\tA film", "'4.5'")]
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text(f"1\t1.0\tA film\n{line}\n")
    with pytest.raises(DataError, match=r"sentences\.txt:2: ") as caught:
        read_sentences(path)
    assert what in str(caught.value)


# ------------------------------------------------------------------------------------------- facts about the real data
@pytest.fixture(scope="module")
def sentences(data_folder: Path) -> list[Sentence]:
    return read_sentences(data_folder / "movie_sentiment" / SENTENCES_FILE)


@pytest.fixture(scope="module")
def real(data_folder: Path) -> MovieSentimentTask:
    return MovieSentimentTask(MovieSentimentConfig(str(data_folder / "movie_sentiment")))


def order_accuracy(values: npt.NDArray[np.float64], ratings: npt.NDArray[np.float64]) -> tuple[int, float]:
    """(pairs whose ratings differ by at least 1, share of them that ``values`` orders alike, equal values left out)."""
    pairs = right = wrong = 0
    for value, rating in zip(values, ratings, strict=True):  # row by row: the whole table would be a gigabyte
        lower = values[rating - ratings >= 1.0]
        pairs, right, wrong = pairs + len(lower), right + int((lower < value).sum()), wrong + int((lower > value).sum())
    return pairs, right / (right + wrong)


def test_there_are_10605_sentences_in_three_parts(sentences: list[Sentence]) -> None:
    parts = [sentence.part for sentence in sentences]
    assert len(sentences) == 10_605
    assert [parts.count(part) for part in ("judge", "test", "train")] == [2_593, 1_108, 6_904]


def test_two_sentences_stand_twice(sentences: list[Sentence], real: MovieSentimentTask) -> None:
    assert sum(len(real.sentences(part)) for part in ("judge", "test", "train")) == len(sentences) - 2


def test_length_says_nothing_about_the_rating(sentences: list[Sentence]) -> None:
    ratings = np.array([sentence.rating for sentence in sentences])
    _, by_characters = order_accuracy(np.array([float(len(sentence.text)) for sentence in sentences]), ratings)
    _, by_words = order_accuracy(np.array([float(len(sentence.text.split())) for sentence in sentences]), ratings)
    assert by_characters == pytest.approx(0.506, abs=0.001)
    assert by_words == pytest.approx(0.495, abs=0.001)


def test_the_judge_orders_78_percent_of_unseen_pairs(real: MovieSentimentTask) -> None:
    unseen = real.sentences("test")
    ratings = np.array([sentence.rating for sentence in unseen])
    pairs, accuracy = order_accuracy(np.array([real.judge.score(sentence.text) for sentence in unseen]), ratings)
    assert pairs == 400_352
    assert accuracy == pytest.approx(0.781, abs=0.001)


def test_naive_bayes_on_the_training_part_orders_82_percent(real: MovieSentimentTask) -> None:
    own, unseen = real.sentences("train"), real.sentences("test")
    bayes = NaiveBayes.fit([s.text for s in own if s.rating > 0], [s.text for s in own if s.rating < 0])
    ratings = np.array([sentence.rating for sentence in unseen])
    _, accuracy = order_accuracy(np.array([bayes.score(sentence.text) for sentence in unseen]), ratings)
    assert accuracy == pytest.approx(0.816, abs=0.001)


def test_the_real_task_has_these_sizes(real: MovieSentimentTask) -> None:
    assert [len(real.demonstrations(split)) for split in SPLITS] == [6_675, 1_061]
    assert [len(real.prompts(split)) for split in SPLITS] == [6_675, 932]
    assert [len(real.rankings(split)) for split in SPLITS] == [4_000, 1_000]


def test_people_are_as_often_positive_as_negative_by_the_judge(real: MovieSentimentTask) -> None:
    grades = [real.grade(PROMPT, shown.messages[-1].content) for shown in real.demonstrations("heldout")]
    assert np.mean([graded["gold"] for graded in grades]) == pytest.approx(0.504, abs=0.01)
    assert np.mean([graded["words"] for graded in grades]) == pytest.approx(16.4, abs=0.1)


def test_the_lexicon_has_7502_words(data_folder: Path) -> None:
    lexicon = read_lexicon(data_folder / "movie_sentiment" / LEXICON_FILE)
    assert len(lexicon) == 7_502  # of 7,517 lines
    assert (lexicon["good"], lexicon["horrible"]) == (1.9, -2.5)
