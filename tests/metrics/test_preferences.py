"""Agreement with people's rankings, checked against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_ray.metrics.preferences import (
    ScoredPair,
    accuracy,
    accuracy_rows,
    calibration,
    length_rule_accuracy,
    scored_pairs,
)
from rlhf_ray.records import Message, Ranking


def pair(difference: float, *, longer_by: int = 1, annotator: str = "Ann", kind: str = "k") -> ScoredPair:
    return ScoredPair(difference, 0.0, 10 + longer_by, 10, annotator, kind)


def ranking(prompt_id: str, ranks: tuple[int, ...]) -> Ranking:
    return Ranking(prompt_id, (Message("user", "q"),), ("a", "b", "c")[: len(ranks)], ranks, "Ann", kind="k")


def test_pairs_follow_from_ranks_and_ties_give_none() -> None:
    rankings = [ranking("p0", (0, 0)), ranking("p1", (1, 0, 1)), ranking("p2", (0, 1))]
    pairs = scored_pairs(rankings, {2: (0.1, 0.2), 1: (1.0, 2.0, 3.0)}, {2: (5, 6), 1: (7, 8, 9)})
    assert [(p.winner_score, p.loser_score, p.winner_length, p.loser_length) for p in pairs] == [
        (2.0, 1.0, 8, 7),
        (2.0, 3.0, 8, 9),
        (0.1, 0.2, 5, 6),
    ]


def test_equal_scores_are_half_right() -> None:
    assert accuracy([pair(1.0), pair(-1.0), pair(0.0)]) == pytest.approx(0.5)
    assert accuracy([pair(1.0), pair(2.0), pair(0.0), pair(0.5)]) == pytest.approx(3.5 / 4)


def test_the_length_rule_reads_nothing_but_lengths() -> None:
    pairs = [pair(-5.0, longer_by=3), pair(5.0, longer_by=-3), pair(5.0, longer_by=0), pair(-5.0, longer_by=1)]
    assert length_rule_accuracy(pairs) == pytest.approx(2.5 / 4)


@pytest.mark.parametrize("difference", [-3.0, -0.5, 0.0, 2.0])
def test_the_loss_is_that_of_bradley_and_terry(difference: float) -> None:
    assert pair(difference).loss == pytest.approx(-math.log(1 / (1 + math.exp(-difference))), rel=1e-12)


@pytest.mark.parametrize(("difference", "loss"), [(-1000.0, 1000.0), (1000.0, 0.0)])
def test_the_loss_of_extreme_scores_neither_overflows_nor_vanishes(difference: float, loss: float) -> None:
    assert pair(difference).loss == loss


# ----------------------------------------------------------------------------------------------------------------- rows
def test_rows_split_by_length_annotator_and_kind() -> None:
    pairs = [
        pair(1.0, longer_by=2, annotator="Bob", kind="x"),
        pair(-1.0, longer_by=-2, annotator="Bob", kind="x"),
        pair(1.0, longer_by=-1, annotator="Ann", kind="y"),
        pair(0.0, longer_by=0, annotator="Ann", kind="x"),
    ]
    rows = {row.name: (row.correct, row.total) for row in accuracy_rows(pairs)}
    assert rows == {
        "reward model, all pairs": (2.5, 4),
        "length rule (longer wins)": (1.5, 4),
        "chosen is longer": (1.0, 1),
        "chosen is shorter": (1.0, 2),
        "annotator: Ann": (1.5, 2),
        "annotator: Bob": (1.0, 2),
        "prompts: x": (1.5, 3),
        "prompts: y": (1.0, 1),
    }


def test_a_single_annotator_or_kind_gets_no_row_and_neither_does_nothing() -> None:
    assert [row.name for row in accuracy_rows([pair(1.0), pair(-1.0)])] == [
        "reward model, all pairs",
        "length rule (longer wins)",
        "chosen is longer",
    ]


# ---------------------------------------------------------------------------------------------------------- calibration
def test_each_pair_is_seen_from_both_sides() -> None:
    difference = math.log(0.83 / 0.17)  # the winner with probability 0.83
    low, high = calibration([pair(difference), pair(-difference), pair(difference)])
    assert (low.predicted, low.agreed, low.total) == (pytest.approx(0.17), 1, 3)
    assert (high.predicted, high.agreed, high.total) == (pytest.approx(0.83), 2, 3)


def test_the_bins_of_a_calibrated_model_agree_with_what_they_predict() -> None:
    for share in (0.6, 0.8, 0.9):
        difference = math.log(share / (1 - share))
        agreeing = round(share * 100)
        bins = calibration([pair(difference)] * agreeing + [pair(-difference)] * (100 - agreeing), num_bins=4)
        for found in bins:
            assert found.agreed / found.total == pytest.approx(found.predicted)


def test_certainty_falls_into_the_outermost_bins() -> None:
    first, last = calibration([pair(1000.0)], num_bins=5)
    assert (first.predicted, first.agreed, last.predicted, last.agreed) == (0.0, 0, 1.0, 1)
