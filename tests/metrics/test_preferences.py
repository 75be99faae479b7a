"""Agreement with people's rankings, checked against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rlhf_ray.metrics.preferences import (
    ScoredPair,
    accuracy,
    accuracy_rows,
    calibration,
    calibration_error,
    disagreement_rows,
    length_rule_accuracy,
    scored_pairs,
)
from rlhf_ray.metrics.report_data import CalibrationBin
from rlhf_ray.records import Message, Ranking, SoftLabel


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
        "lengths differ by less than 10%": (0.5, 1),
        "lengths differ by 10% to 50%": (2.0, 3),
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


def test_rows_split_by_axis_and_the_whole_has_its_own_name() -> None:
    pairs = [replace(pair(1.0), axis="honest"), replace(pair(-1.0), axis="honest"), pair(2.0)]
    rows = {row.name: (row.correct, row.total) for row in accuracy_rows(pairs)}
    assert {name: counts for name, counts in rows.items() if name.startswith("axis")} == {
        "axis: (the whole)": (1.0, 1),
        "axis: honest": (1.0, 2),
    }


def test_pairs_on_which_members_disagree_stand_in_quarters_from_least_to_most() -> None:
    spreads = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.7, 0.4]
    pairs = [replace(pair(1.0 if spread < 0.6 else -1.0), disagreement=spread) for spread in spreads]
    assert [(row.name, row.correct, row.total) for row in disagreement_rows(pairs)] == [
        ("members disagree: least quarter", 2.0, 2),
        ("members disagree: second quarter", 2.0, 2),
        ("members disagree: third quarter", 1.0, 2),
        ("members disagree: most quarter", 0.0, 2),
    ]
    assert disagreement_rows([pair(1.0)]) == []


def test_members_disagree_about_a_lead_and_not_about_a_level() -> None:
    members = {0: ((1.0, 5.0), (0.0, 4.0))}
    (same,) = scored_pairs([ranking("p", (0, 1))], {0: (3.0, 2.0)}, {0: (5, 6)}, members)
    assert same.disagreement == 0.0
    (apart,) = scored_pairs([ranking("p", (0, 1))], {0: (3.0, 2.0)}, {0: (5, 6)}, {0: ((1.0, 5.0), (0.0, 2.0))})
    assert apart.disagreement == pytest.approx(math.sqrt(2))


# ---------------------------------------------------------------------------------------------------------- soft labels
def test_soft_labels_are_scored_by_the_likelier_winner_and_even_odds_are_left_out() -> None:
    soft = replace(ranking("p", (0, 1, 2)), soft=(SoftLabel(0, 1, 0.2), SoftLabel(1, 2, 0.5)))
    (found,) = scored_pairs([soft], {0: (1.0, 3.0, 2.0)}, {0: (5, 6, 7)})
    assert (found.winner_score, found.loser_score, found.certainty, found.correct) == (3.0, 1.0, 0.8, 1.0)


@pytest.mark.parametrize("difference", [-3.0, 0.0, 2.0, 800.0])
def test_the_loss_of_a_soft_label_is_its_cross_entropy(difference: float) -> None:
    unsure = replace(pair(difference), certainty=0.7)
    assert unsure.loss == pytest.approx(0.7 * pair(difference).loss + 0.3 * pair(-difference).loss)


def test_a_model_that_predicts_the_odds_of_soft_labels_is_calibrated() -> None:
    unsure = [replace(pair(math.log(q / (1 - q))), certainty=q) for q in (0.6, 0.75, 0.9)]
    assert calibration_error(calibration(unsure)) == pytest.approx(0.0, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- calibration
def test_the_calibration_error_is_the_mean_distance_of_what_is_predicted_from_what_is_observed() -> None:
    bins = (CalibrationBin(0.2, 1, 4), CalibrationBin(0.9, 6, 6))
    assert calibration_error(bins) == pytest.approx((4 * 0.05 + 6 * 0.1) / 10)


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
