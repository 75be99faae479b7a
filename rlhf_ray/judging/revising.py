"""Constitutional AI's first half (Bai et al. 2022, 2212.08073, section 3): critique and revision, round after round.

response -> critique by a drawn principle -> revision -> critique by another -> revision ... -> a demonstration
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlhf_ray.judging.asking import Asker
from rlhf_ray.judging.constitution import Constitution, Principle
from rlhf_ray.judging.questions import Purpose, Question
from rlhf_ray.records import Message, TextPrompt

BRIEFLY = "Write the revised response and nothing else."


@dataclass(frozen=True)
class Step:
    """One round: what was criticised, by which principle, and what became of it."""

    round: int
    principle: str
    response: str
    critique: str
    revision: str


@dataclass(frozen=True)
class Revision:
    """A prompt with its first response, every step, and what the steps have led to."""

    prompt: TextPrompt
    first: str
    steps: tuple[Step, ...] = field(default=())

    @property
    def response(self) -> str:
        return self.steps[-1].revision if self.steps else self.first

    def record(self) -> dict[str, Any]:
        """What people read: the whole way from the first response to the last."""
        return {
            "prompt_id": self.prompt.prompt_id,
            "kind": self.prompt.kind,
            "prompt": [asdict(message) for message in self.prompt.messages],
            "first": self.first,
            "steps": [asdict(step) for step in self.steps],
            "response": self.response,
        }

    def demonstration(self) -> dict[str, Any]:
        """What SFT learns from: the last revision as if it had been said at once."""
        messages = [*self.prompt.messages, Message("assistant", self.response)]
        return {
            "id": self.prompt.prompt_id,
            "kind": self.prompt.kind,
            "messages": [asdict(message) for message in messages],
        }


async def revise(
    drafts: Sequence[Revision], asker: Asker, constitution: Constitution, *, num_rounds: int, seed: int
) -> list[Revision]:
    """Criticise and revise every draft ``num_rounds`` times. A draft that no principle applies to stays as it is.

    What the budget does not reach for keeps the steps that it has; ``asker.stopped`` then says so.
    """
    revisions = list(drafts)
    for number in range(1, num_rounds + 1):
        chosen = {
            place: principle
            for place, draft in enumerate(revisions)
            if (principle := constitution.draw(draft.prompt.kind, seed, draft.prompt.prompt_id, number)) is not None
        }
        revised = await _round([(revisions[place], chosen[place]) for place in chosen], asker, number)
        for place, revision in zip(chosen, revised, strict=True):
            revisions[place] = revision
    return revisions


async def _round(chosen: Sequence[tuple[Revision, Principle]], asker: Asker, number: int) -> list[Revision]:
    """One round over all drafts: first every critique, then every revision."""
    critiques = await asker.ask([critique_question(draft, principle) for draft, principle in chosen])
    said = [answer.text.strip() if answer is not None else "" for answer in critiques]
    criticised = [place for place, critique in enumerate(said) if critique]
    answers = await asker.ask([revision_question(*chosen[place], said[place]) for place in criticised])
    texts = {place: answer.text.strip() for place, answer in zip(criticised, answers, strict=True) if answer}
    return [
        replace(draft, steps=(*draft.steps, Step(number, principle.name, draft.response, said[place], texts[place])))
        if texts.get(place)
        else draft
        for place, (draft, principle) in enumerate(chosen)
    ]


def critique_question(draft: Revision, principle: Principle) -> Question:
    """The conversation so far, then the request to criticise its last response."""
    said = (*draft.prompt.messages, Message("assistant", draft.response))
    return _question("critique", (*said, Message("user", principle.critique)), draft, principle)


def revision_question(draft: Revision, principle: Principle, critique: str) -> Question:
    """The same with the critique, then the request to revise."""
    said = critique_question(draft, principle).messages
    asked = Message("user", f"{principle.revision} {BRIEFLY}")
    return _question("revise", (*said, Message("assistant", critique), asked), draft, principle)


def _question(purpose: Purpose, messages: tuple[Message, ...], draft: Revision, principle: Principle) -> Question:
    return Question(purpose, messages, draft.prompt, (draft.response,), principle)
