"""How well scores agree with people's rankings: accuracy, calibration, by length, annotator, axis and disagreement."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from rlhf_ray.metrics.report_data import AccuracyRow, CalibrationBin
from rlhf_ray.records import Ranking

OPINIONS_FILE = "heldout_scores.jsonl"  # of each held-out ranking: its place in the file, the scores of its responses
LENGTH_GAPS = (("less than 10%", 0.0, 0.1), ("10% to 50%", 0.1, 0.5), ("half or more", 0.5, math.inf))
QUARTERS = ("least", "second", "third", "most")


@dataclass(frozen=True)
class ScoredPair:
    """One decided pair: scores and lengths (in tokens or words, the same unit) of winner and loser."""

    winner_score: float
    loser_score: float
    winner_length: int
    loser_length: int
    annotator: str
    kind: str
    axis: str = ""  # what was compared; empty: the whole
    certainty: float = 1.0  # the probability that the winner is the better, by the label
    disagreement: float | None = None  # deviation of the lead among the members of an ensemble; None: there are none

    @property
    def correct(self) -> float:
        """1 where the winner scores higher, one half for equal scores."""
        return _above(self.winner_score, self.loser_score)

    @property
    def longer_correct(self) -> float:
        """1 where the winner is the longer, one half for equal lengths."""
        return _above(self.winner_length, self.loser_length)

    @property
    def predicted(self) -> float:
        """sigmoid(r_winner - r_loser)."""
        return math.exp(-_negative_log_sigmoid(self.winner_score - self.loser_score))

    @property
    def loss(self) -> float:
        """-q log sigmoid(r_winner - r_loser) - (1 - q) log sigmoid(r_loser - r_winner) in nats, q the certainty."""
        difference = self.winner_score - self.loser_score
        right = _negative_log_sigmoid(difference)
        return right + (1 - self.certainty) * difference  # -log sigmoid(-d) = d - log sigmoid(d)


def scored_pairs(
    rankings: Sequence[Ranking],
    scores: Mapping[int, Sequence[float]],
    lengths: Mapping[int, Sequence[int]],
    members: Mapping[int, Sequence[Sequence[float]]] | None = None,
) -> list[ScoredPair]:
    """Every decided pair of the rankings that were scored; keys are indices into ``rankings``.

    ``members`` are the scores of an ensemble's members, a list for each of a ranking's responses.
    """
    return [
        ScoredPair(
            winner_score=scores[index][i],
            loser_score=scores[index][j],
            winner_length=lengths[index][i],
            loser_length=lengths[index][j],
            annotator=rankings[index].annotator,
            kind=rankings[index].kind,
            axis=rankings[index].axis,
            certainty=label.probability,
            disagreement=None if members is None else _spread_of_lead(members[index][i], members[index][j]),
        )
        for index in sorted(scores)
        for label in rankings[index].labels
        for i, j in [(label.first, label.second)]
        if label.probability > 0.5
    ]


def _spread_of_lead(winner: Sequence[float], loser: Sequence[float]) -> float:
    return stdev(first - second for first, second in zip(winner, loser, strict=True))


def _negative_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(-x, 0.0)


def accuracy(pairs: Sequence[ScoredPair]) -> float:
    """Share of pairs in which the winner scores higher."""
    return sum(p.correct for p in pairs) / len(pairs)


def mean_loss(pairs: Sequence[ScoredPair]) -> float:
    """The mean of the pairs' losses, in nats."""
    return sum(p.loss for p in pairs) / len(pairs)


def length_rule_accuracy(pairs: Sequence[ScoredPair]) -> float:
    """Share of pairs in which the winner is the longer: what a rule that reads nothing reaches."""
    return sum(p.longer_correct for p in pairs) / len(pairs)


def accuracy_rows(pairs: Sequence[ScoredPair]) -> tuple[AccuracyRow, ...]:
    """The reward model beside the length rule, then split: by which is longer and how much, by whom and of what."""
    rows = [
        pairs_row("reward model, all pairs", pairs),
        length_rule_row("length rule (longer wins)", pairs),
        pairs_row("chosen is longer", [p for p in pairs if p.winner_length > p.loser_length]),
        pairs_row("chosen is shorter", [p for p in pairs if p.winner_length < p.loser_length]),
    ]
    apart = {name: [p for p in pairs if low <= _length_gap(p) < high] for name, low, high in LENGTH_GAPS}
    if sum(bool(group) for group in apart.values()) > 1:
        rows += [pairs_row(f"lengths differ by {name}", group) for name, group in apart.items()]
    for title, field in (("annotator", "annotator"), ("axis", "axis"), ("prompts", "kind")):
        groups: dict[str, list[ScoredPair]] = defaultdict(list)
        for pair in pairs:
            groups[getattr(pair, field) or "(the whole)"].append(pair)
        if len(groups) > 1:
            rows += [pairs_row(f"{title}: {name}", group) for name, group in sorted(groups.items())]
    return tuple(row for row in [*rows, *disagreement_rows(pairs)] if row.total)


def length_rule_row(name: str, pairs: Sequence[ScoredPair]) -> AccuracyRow:
    """What the length rule gets right."""
    return AccuracyRow(name, sum(p.longer_correct for p in pairs), len(pairs))


def disagreement_rows(pairs: Sequence[ScoredPair]) -> list[AccuracyRow]:
    """The reward model beside the length rule, then split: by which is longer, by how much, by whom, of what."""
    known = sorted((p for p in pairs if p.disagreement is not None), key=lambda p: p.disagreement or 0.0)
    cuts = [len(known) * quarter // 4 for quarter in range(5)]
    return [
        pairs_row(f"members disagree: {name} quarter", known[low:high])
        for name, low, high in zip(QUARTERS, cuts[:-1], cuts[1:], strict=True)
        if high > low
    ]


def calibration(pairs: Sequence[ScoredPair], num_bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Predicted against observed agreement. Each pair is shown as (i, j) and as (j, i), so that bins are symmetric.

    A soft label agrees by its probability.
    """
    bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for pair in pairs:
        predicted, q = pair.predicted, pair.certainty
        for probability, agreed in ((predicted, q), (1.0 - predicted, 1.0 - q)):
            bins[min(int(probability * num_bins), num_bins - 1)].append((probability, agreed))
    return tuple(
        CalibrationBin(sum(p for p, _ in group) / len(group), sum(a for _, a in group), len(group))
        for _, group in sorted(bins.items())
    )


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Expected calibration error: the mean of |predicted - observed| over bins, by pairs (Guo et al. 2017, eq. 3)."""
    return sum(abs(b.predicted * b.total - b.agreed) for b in bins) / sum(b.total for b in bins)


def _length_gap(pair: ScoredPair) -> float:
    """The difference of the lengths as a share of the greater."""
    longer = max(pair.winner_length, pair.loser_length)
    return abs(pair.winner_length - pair.loser_length) / longer if longer else 0.0


def pairs_row(name: str, pairs: Sequence[ScoredPair]) -> AccuracyRow:
    """What the reward model gets right of ``pairs``."""
    return AccuracyRow(name, sum(p.correct for p in pairs), len(pairs))


def _above(first: float, second: float) -> float:
    return 0.5 if first == second else float(first > second)
