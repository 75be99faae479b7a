"""A judge compares: items of a preference store become questions, and answers become judgements.

item -> its pairs -> both orders of each, as often as there are votes -> answers -> opinions -> one judgement
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from rlhf_ray.config.judge import JudgeConfig
from rlhf_ray.feedback.records import Item, Judgement
from rlhf_ray.judging.asking import Asker
from rlhf_ray.judging.constitution import Constitution, Principle, read_constitution
from rlhf_ray.judging.questions import Answer, Question
from rlhf_ray.judging.template import CompareTemplate
from rlhf_ray.judging.verdicts import Opinion, ranks_of, read_answer
from rlhf_ray.records import Message, SoftLabel

LONGEST_REASON = 2000  # characters of an answer that are kept with the judgement; the ledger has all of it


@dataclass(frozen=True)
class Judged:
    """An item with what the judge says of it. ``opinions`` are by pair of candidates."""

    item_id: str
    judgement: Judgement
    opinions: Mapping[tuple[int, int], Opinion]


class Comparer:
    """Asks somebody about items, by one template and, where there is one, a constitution."""

    def __init__(self, config: JudgeConfig, asker: Asker, *, seed: int) -> None:
        """Raises ConfigError for a template or a constitution that cannot be used."""
        self.config = config
        self.asker = asker
        self.template = CompareTemplate.read(config.template)
        self.constitution = read_constitution(config.constitution) if config.constitution else Constitution()
        self._pattern = re.compile(config.pattern)
        self._seed = seed

    async def judge(self, items: Mapping[str, Item]) -> list[Judged]:
        """Judge items by their ids. One whose questions are too long, or came after the budget's end, is left out."""
        questions = {item_id: self.questions(item_id, item) for item_id, item in items.items()}
        answers = iter(await self.asker.ask([each for asked in questions.values() for each in asked]))
        judged = []
        for item_id, asked in questions.items():
            own = [next(answers) for _ in asked]
            given = [answer for answer in own if answer is not None]
            if asked and len(given) == len(own):
                judged.append(self._judged(item_id, items[item_id], given))
        return judged

    def questions(self, item_id: str, item: Item) -> list[Question]:
        """Of every pair both orders, in turn, as often as there are votes; none where no principle applies."""
        principle = self.principle(item_id, item)
        if self.constitution.principles and principle is None:
            return []
        return [
            self._question(item, shown, principle, vote)
            for i, j in combinations(range(len(item.candidates)), 2)
            for vote in range(self.config.num_votes)
            for shown in ((i, j), (j, i))
        ]

    def principle(self, item_id: str, item: Item) -> Principle | None:
        """The one that was drawn for the item, for all of its pairs."""
        return self.constitution.draw(item.prompt.kind, self._seed, item_id)

    def _question(self, item: Item, shown: tuple[int, int], principle: Principle | None, vote: int) -> Question:
        responses = (item.candidates[shown[0]].text, item.candidates[shown[1]].text)
        text = self.template.render(item.prompt.messages, *responses, principle.comparison if principle else "")
        return Question("compare", (Message("user", text),), item.prompt, responses, principle, vote)

    def _judged(self, item_id: str, item: Item, answers: Sequence[Answer]) -> Judged:
        read = [read_answer(answer, self._pattern, self.config.min_mass) for answer in answers]
        size = 2 * self.config.num_votes
        pairs = list(combinations(range(len(item.candidates)), 2))
        opinions = {pair: Opinion.of(read[size * n : size * (n + 1)]) for n, pair in enumerate(pairs)}
        principle = self.principle(item_id, item)
        made = _judgement(item_id, len(item.candidates), opinions, self.config, answers[0].text)
        guideline = f"{self.constitution.name}/{principle.name}" if principle else self.template.name
        axis = principle.axis if principle and self.config.by_axis else ""
        return Judged(item_id, replace(made, guideline=guideline, axis=axis), opinions)


def _judgement(
    item_id: str,
    num_candidates: int,
    opinions: Mapping[tuple[int, int], Opinion],
    config: JudgeConfig,
    said: str,
) -> Judgement:
    outcomes = {pair: opinion.outcome(config.on_disagreement) for pair, opinion in opinions.items()}
    decided = {pair: outcome for pair, outcome in outcomes.items() if outcome is not None}
    if len(decided) < len(outcomes):
        reason = f"no readable verdict; one answer was: {said[:LONGEST_REASON]}"
        return Judgement(item_id, config.name, "skipped", reason=reason)
    soft = tuple(SoftLabel(*pair, probability=opinion.probability or 0.0) for pair, opinion in opinions.items())
    reason = said[:LONGEST_REASON] if config.verdict == "text" else ""
    return Judgement(item_id, config.name, ranks=ranks_of(decided, num_candidates), soft=soft, reason=reason)
