"""Tokens as text and in colour: numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.experience_store import SavedExperience
from rlhf_ray.records import Score
from rlhf_ray.viewing.signals import SIGNALS, Saved, coloured, level, signals_of, table
from rlhf_ray.viewing.words import Piece, Words
from tests.viewing.made_up import HOSTILE, TOKENS, ids_of, rollout


@pytest.fixture
def words(tmp_path: Path) -> Words:
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    TOKENS.save(str(tmp_path / "model" / "tokenizer" / "tokenizer.json"))
    return Words(tmp_path)


@pytest.mark.parametrize("text", ["plain words", "héllo 😀 wörld\n", HOSTILE, "日本語", ""])
def test_the_pieces_make_up_the_text(words: Words, text: str) -> None:
    pieces = words.pieces(ids_of(text, ends=True))
    assert "".join(piece.text for piece in pieces if not piece.is_special) == text == words.texts([ids_of(text)])[0]
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces)][:-1]
    assert pieces[-1].is_special


def test_bytes_of_one_letter_are_one_piece_and_bytes_of_none_are_alone(words: Words) -> None:
    assert [(piece.text, piece.end - piece.start) for piece in words.pieces(ids_of("a😀b"))] == [
        ("a", 1),
        ("😀", 4),
        ("b", 1),
    ]
    broken = np.concatenate([ids_of("é")[:1], ids_of("ab")])
    assert [piece.end - piece.start for piece in words.pieces(broken)] == [1, 1, 1]


def test_without_a_tokenizer_tokens_are_numbers(tmp_path: Path) -> None:
    words = Words(tmp_path)
    assert words.texts([np.array([3, 14])]) == ["3 14"]
    assert words.pieces(np.array([3, 14])) == [Piece("3 ", 0, 1), Piece("14 ", 1, 2)]
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    (tmp_path / "model" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert not Words(tmp_path).is_there


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, 0), (0.04, 0), (0.05, 1), (0.6, 3), (7.0, 5), (-0.2, -2), (-9.0, -5), (float("nan"), 0)],
)
def test_the_level_is_how_many_edges_a_value_reaches(value: float, expected: int) -> None:
    assert level(value, (0.05, 0.2, 0.5, 1.0, 2.0)) == expected


def saved(**changes: object) -> Saved:
    """Three tokens under the policy -1, -1, -1 and the reference -1, -2, -0.5."""
    own = rollout(1, 0, "ab")
    reference = np.array([-1.0, -2.0, -0.5], dtype=np.float32)
    return replace(Saved(own, reference, Score(1.0), Score(1.0), kl_coef=0.1), **changes)  # type: ignore[arg-type]


def test_signals_are_those_of_the_definitions() -> None:
    found = signals_of(saved())
    assert list(found) == ["ratio", "kl", "surprise", "penalty"]
    assert found["ratio"] == pytest.approx([0.0, 1.0, -0.5])
    assert found["kl"] == pytest.approx([0.0, np.exp(-1.0) - 1 + 1, np.exp(0.5) - 1 - 0.5])
    assert found["surprise"] == pytest.approx([1.0, 1.0, 1.0])
    assert found["penalty"] == pytest.approx([0.0, -0.1, 0.05])


def test_what_is_not_saved_is_no_signal_and_what_is_there_is_one() -> None:
    assert list(signals_of(saved(reference=None))) == ["surprise"]
    mixed = replace(rollout(1, 0, "ab"), policy_versions=np.array([3, 4, 4], dtype=np.int32))
    assert signals_of(saved(rollout=mixed))["age"].tolist() == [1.0, 0.0, 0.0]
    steps = Score(1.0, step_rewards=((0, 0.5), (2, -1.0)))
    assert signals_of(saved(score=steps))["steps"].tolist() == [0.5, 0.0, -1.0]


def test_where_the_trainer_s_numbers_were_kept_they_are_signals_and_the_ratio_is_its_own() -> None:
    old, ref, advantages, values = np.array(
        [[-1.0, -1.5, -1.0], [-1.0, -2.0, 0.0], [1.0, -2.0, 0.5], [0.25, 0.5, 0.75]], dtype=np.float32
    )
    found = signals_of(saved(reference=None, experience=SavedExperience(old, ref, advantages, values)))
    assert list(found) == ["ratio", "kl", "value", "advantage", "surprise", "engine", "penalty"]
    assert found["ratio"].tolist() == [0.0, 0.5, -1.0]
    assert found["penalty"] == pytest.approx([0.0, -0.05, 0.1])
    assert found["value"].tolist() == values.tolist()
    assert found["advantage"].tolist() == advantages.tolist()
    assert found["engine"].tolist() == [0.0, -0.5, 0.0]
    assert "value" not in signals_of(saved(experience=SavedExperience(old, ref, advantages, None)))


def test_a_piece_of_several_tokens_has_the_sum_of_theirs(words: Words) -> None:
    signal = SIGNALS[0]
    pieces = [Piece("é", 0, 2), Piece("x", 2, 3, is_special=True)]
    tokens = coloured(pieces, np.array([0.3, 0.3, -5.0], dtype=np.float32), signal)
    assert [(token.level, token.tone, token.said, token.is_special) for token in tokens] == [
        (3, "p3", "0.6000 nats", False),
        (-5, "n5", "-5.000 nats", True),
    ]
    by_key = {signal.key: signal for signal in SIGNALS}
    (first, _) = coloured(pieces, np.array([0.5, 1.0, -5.0], dtype=np.float32), by_key["advantage"])
    assert (first.tone, first.said) == ("p2", "0.7500")  # values and advantages do not add up: the mean
    assert table(pieces, {"a": np.array([0.3, 0.3, -5.0])}) == [("é", ["0.6000"]), ("x", ["-5.000"])]
