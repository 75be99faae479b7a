"""What a reward model is asked once it has learned: held-out rankings, rankings of other data, edited responses.

The members of an ensemble sit the same exam, one after the other; what is reported is said of their mean, on the scale
on which it is served.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from rlhf_ray.data.files import read_usable
from rlhf_ray.data.formats import parse_preference
from rlhf_ray.metrics.edits import EDITS, edit_rows
from rlhf_ray.metrics.preferences import (
    ScoredPair,
    accuracy,
    accuracy_rows,
    calibration,
    calibration_error,
    length_rule_accuracy,
    length_rule_row,
    pairs_row,
    scored_pairs,
)
from rlhf_ray.pipeline.comparison import Comparisons
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.door import require_apart
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Ranking
from rlhf_ray.rewards.heads import WHOLE, Heads, Raw, Scale
from rlhf_ray.stages.work import RawScores, TokenizedRanking

EDITED_RESPONSES = 200
Answers: TypeAlias = Mapping[int, RawScores]  # by the index of a ranking


@dataclass(frozen=True)
class Questions:
    """Rankings, tokenised and as they were read; the index of the one is its place in the other."""

    tokenized: Sequence[TokenizedRanking]
    rankings: Sequence[Ranking] = ()


@dataclass(frozen=True)
class Sheet:
    """What one member says: its raw scores by the name of the questions, and the scale that it is served on."""

    scale: Scale
    answers: Mapping[str, Answers]


@dataclass(frozen=True)
class Exam:
    """``questions`` are ``heldout``, ``edited`` and, where the run names such data, ``other``.

    Question i of ``edited`` is a response as it was and under the edit ``edits[i]``.
    """

    heads: Heads
    questions: Mapping[str, Questions]
    edits: Sequence[str]

    @classmethod
    def of(cls, context: Context, tools: TextTools, comparisons: Comparisons) -> Exam:
        config = context.config.reward_model
        edits, edited = [], []
        for name, question in _edited(tools, comparisons):
            edits.append(name)
            edited.append(question)
        questions = {
            "heldout": Questions(comparisons.heldout, comparisons.heldout_rankings),
            "edited": Questions(edited),
        }
        if config.ood_preferences:
            rankings, _ = read_usable(config.ood_preferences, parse_preference)
            require_apart(comparisons.train_rankings, rankings)
            questions["other"] = Questions(tools.rankings(rankings, config.axes)[0], rankings)
        return cls(config.heads, questions, edits)

    # ------------------------------------------------------------------------------------------------------- results
    def results(self, sheets: Sequence[Sheet]) -> dict[str, Any]:
        """Everything that is told of the model, as the stage's results have it."""
        pairs = self.pairs("heldout", sheets)
        bins, rows, other = calibration(pairs), list(accuracy_rows(pairs)), {}
        if "other" in self.questions:
            strange = self.pairs("other", sheets)
            rows += [pairs_row("other data, all pairs", strange), length_rule_row("other data, length rule", strange)]
            other = {
                "ood_pairs": len(strange),
                "ood_accuracy": accuracy(strange),
                "ood_calibration_error": calibration_error(calibration(strange)),
            }
        return {
            "heldout_pairs": len(pairs),
            "accuracy": accuracy(pairs),
            "length_rule_accuracy": length_rule_accuracy(pairs),
            "calibration_error": calibration_error(bins),
            **other,
            "accuracy_rows": [asdict(row) for row in rows],
            "calibration": [asdict(each) for each in bins],
            "edits": [asdict(row) for row in edit_rows(self.changes(sheets))],
        }

    def opinions(self, name: str, sheets: Sequence[Sheet]) -> list[dict[str, Any]]:
        """Of each of the questions ``name``: the place of its ranking, and the members' mean score of each response."""
        return [
            {"ranking": question.index, "scores": self._scores(name, question, sheets).mean(axis=0).tolist()}
            for question in self.questions[name].tokenized
        ]

    def pairs(self, name: str, sheets: Sequence[Sheet]) -> list[ScoredPair]:
        """The decided pairs of the questions ``name``, scored by the mean of the members."""
        asked, scores, members = self.questions[name], {}, {}
        for question in asked.tokenized:
            own = self._scores(name, question, sheets)
            scores[question.index] = own.mean(axis=0).tolist()
            members[question.index] = own.T.tolist()
        lengths = {q.index: tuple(int(s.mask.sum()) for s in q.sequences) for q in asked.tokenized}
        return scored_pairs(asked.rankings, scores, lengths, members if len(sheets) > 1 else None)

    def changes(self, sheets: Sequence[Sheet]) -> dict[str, list[float]]:
        """By edit, what it does to the score of each response, in deviations of the score."""
        found: dict[str, list[float]] = defaultdict(list)
        unit = _unit(sheets, WHOLE)
        for question in self.questions["edited"].tokenized:
            before, after = self._scores("edited", question, sheets).mean(axis=0)
            found[self.edits[question.index]].append(float(after - before) / unit)
        return found

    def _scores(self, name: str, question: TokenizedRanking, sheets: Sequence[Sheet]) -> Raw:
        """Scores [members, K] of a ranking's responses on its axis: normalised by member, in units of a log-odds."""
        rows = []
        for sheet in sheets:
            raw = np.array(sheet.answers[name][question.index], dtype=np.float64)
            rows.append(sheet.scale.normalised(self.heads.score(raw, question.axis), question.axis))
        return np.stack(rows) * _unit(sheets, question.axis)


def _unit(sheets: Sequence[Sheet], axis: str) -> float:
    """The members' mean deviation: times it, a mean of normalised scores has differences that are log-odds again."""
    return float(np.mean([sheet.scale.deviations[axis] for sheet in sheets]))


def _edited(tools: TextTools, comparisons: Comparisons) -> Iterator[tuple[str, TokenizedRanking]]:
    """One response to each of some held-out prompts, under every edit that leaves it short enough."""
    by_prompt: dict[str, Ranking] = {}
    for ranking in comparisons.heldout_rankings:
        by_prompt.setdefault(ranking.prompt_id, ranking)
    index = 0
    for number, ranking in enumerate(list(by_prompt.values())[:EDITED_RESPONSES]):
        text = ranking.responses[number % len(ranking.responses)].strip()  # not the best one only
        before = tools.conversation(ranking.messages, text)
        for name, edit in EDITS.items() if text and before else ():
            after = tools.conversation(ranking.messages, edit(text))
            if before and after:
                yield name, TokenizedRanking(index, (before, after), (), ())
                index += 1
