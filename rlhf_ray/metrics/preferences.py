"""How well scores agree with people's rankings: accuracy, calibration, by length and by annotator."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.metrics.report_data import AccuracyRow, CalibrationBin
from rlhf_ray.records import Ranking


@dataclass(frozen=True)
class ScoredPair:
    """One decided pair: scores and lengths (in tokens or words, the same unit) of winner and loser."""

    winner_score: float
    loser_score: float
    winner_length: int
    loser_length: int
    annotator: str
    kind: str

    @property
    def correct(self) -> float:
        """1 where the winner scores higher, one half for equal scores."""
        return _above(self.winner_score, self.loser_score)

    @property
    def longer_correct(self) -> float:
        """1 where the winner is the longer, one half for equal lengths."""
        return _above(self.winner_length, self.loser_length)

    @property
    def loss(self) -> float:
        """-log sigmoid(r_winner - r_loser) in nats."""
        difference = self.winner_score - self.loser_score
        return math.log1p(math.exp(-abs(difference))) + max(-difference, 0.0)


def scored_pairs(
    rankings: Sequence[Ranking],
    scores: Mapping[int, Sequence[float]],
    lengths: Mapping[int, Sequence[int]],
) -> list[ScoredPair]:
    """Every decided pair of the rankings that were scored; keys are indices into ``rankings``."""
    return [
        ScoredPair(
            winner_score=scores[index][i],
            loser_score=scores[index][j],
            winner_length=lengths[index][i],
            loser_length=lengths[index][j],
            annotator=rankings[index].annotator,
            kind=rankings[index].kind,
        )
        for index in sorted(scores)
        for i, j in rankings[index].pairs
    ]


def accuracy(pairs: Sequence[ScoredPair]) -> float:
    """Share of pairs in which the winner scores higher."""
    return sum(p.correct for p in pairs) / len(pairs)


def length_rule_accuracy(pairs: Sequence[ScoredPair]) -> float:
    """Share of pairs in which the winner is the longer: what a rule that reads nothing reaches."""
    return sum(p.longer_correct for p in pairs) / len(pairs)


def accuracy_rows(pairs: Sequence[ScoredPair]) -> tuple[AccuracyRow, ...]:
    """The reward model beside the length rule, split by which is longer, by annotator and by kind of prompt."""
    rows = [
        _row("reward model, all pairs", pairs),
        AccuracyRow("length rule (longer wins)", sum(p.longer_correct for p in pairs), len(pairs)),
        _row("chosen is longer", [p for p in pairs if p.winner_length > p.loser_length]),
        _row("chosen is shorter", [p for p in pairs if p.winner_length < p.loser_length]),
    ]
    for title, field in (("annotator", "annotator"), ("prompts", "kind")):
        groups: dict[str, list[ScoredPair]] = defaultdict(list)
        for pair in pairs:
            groups[getattr(pair, field)].append(pair)
        if len(groups) > 1:
            rows += [_row(f"{title}: {name}", group) for name, group in sorted(groups.items())]
    return tuple(row for row in rows if row.total)


def calibration(pairs: Sequence[ScoredPair], num_bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Predicted against observed agreement. Each pair is shown as (i, j) and as (j, i), so that bins are symmetric."""
    bins: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for pair in pairs:
        predicted = math.exp(-pair.loss)
        for probability, agreed in ((predicted, 1), (1.0 - predicted, 0)):
            bins[min(int(probability * num_bins), num_bins - 1)].append((probability, agreed))
    return tuple(
        CalibrationBin(sum(p for p, _ in group) / len(group), sum(a for _, a in group), len(group))
        for _, group in sorted(bins.items())
    )


def _row(name: str, pairs: Sequence[ScoredPair]) -> AccuracyRow:
    return AccuracyRow(name, sum(p.correct for p in pairs), len(pairs))


def _above(first: float, second: float) -> float:
    return 0.5 if first == second else float(first > second)
