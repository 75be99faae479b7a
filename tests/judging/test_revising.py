"""Respond, criticise, revise: rounds by drawn principles, every step kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.config.judge import BudgetConfig
from rlhf_ray.judging.asking import Asker
from rlhf_ray.judging.budget import Budget
from rlhf_ray.judging.constitution import Constitution, Principle
from rlhf_ray.judging.ledger import Ledger
from rlhf_ray.judging.questions import Answer, Question
from rlhf_ray.judging.revising import BRIEFLY, Revision, Step, revise
from rlhf_ray.records import Message
from tests.judging.made_up import PRICE, Scripted, prompt

KIND = Principle("kind", "", "Is it kind?", "Be kind.", kinds=("people",))
TRUE = Principle("true", "", "Is it true?", "Be true.")
BOTH = Constitution("c", (KIND, TRUE))


def says(question: Question) -> Answer:
    """A critique names its principle, a revision adds a mark."""
    assert question.principle is not None
    text = f"not {question.principle.name}" if question.purpose == "critique" else f"{question.responses[0]}!"
    return Answer(f" {text} ", PRICE)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "answers.jsonl")
    yield opened
    opened.close()


def asker(ledger: Ledger, respondent: Scripted, **budget: int) -> Asker:
    return Asker(respondent, ledger, Budget(BudgetConfig(**budget), ledger.usage), batch_size=8)  # type: ignore[arg-type]


async def test_each_round_criticises_and_revises_what_the_round_before_has_left(ledger: Ledger) -> None:
    respondent = Scripted(says)
    constitution = Constitution("c", (TRUE,))
    [made] = await revise([Revision(prompt(1), "no")], asker(ledger, respondent), constitution, num_rounds=2, seed=0)
    assert made.steps == (Step(1, "true", "no", "not true", "no!"), Step(2, "true", "no!", "not true", "no!!"))
    assert made.response == "no!!"
    asked = [question.messages for question in respondent.asked]
    first = (Message("user", "question 1"), Message("assistant", "no"), Message("user", "Is it true?"))
    assert asked[0] == first
    assert asked[1] == (*first, Message("assistant", "not true"), Message("user", f"Be true. {BRIEFLY}"))
    assert asked[2][1] == Message("assistant", "no!")


async def test_principles_are_drawn_for_each_prompt_and_round_among_those_that_apply(ledger: Ledger) -> None:
    drafts = [Revision(prompt(n, "people" if n % 2 else "things"), "x") for n in range(40)]
    made = await revise(drafts, asker(ledger, Scripted(says)), BOTH, num_rounds=2, seed=0)
    names = {
        kind: [s.principle for r in made if r.prompt.kind == kind for s in r.steps] for kind in ("people", "things")
    }
    assert set(names["things"]) == {"true"}
    assert set(names["people"]) == {"kind", "true"}
    assert any(r.steps[0].principle != r.steps[1].principle for r in made)
    again = await revise(drafts, asker(ledger, Scripted(says)), BOTH, num_rounds=2, seed=0)
    assert again == made


async def test_what_no_principle_is_about_or_nobody_can_answer_stays_as_it_is(ledger: Ledger) -> None:
    drafts = [Revision(prompt(1, "things"), "x"), Revision(prompt(2, "people"), "too long")]
    made = await revise(drafts, asker(ledger, Scripted(says)), Constitution("c", (KIND,)), num_rounds=2, seed=0)
    assert made == drafts

    def silent(question: Question) -> Answer:
        return Answer("bad" if question.purpose == "critique" else " ", PRICE)

    [kept] = await revise([Revision(prompt(3), "x")], asker(ledger, Scripted(silent)), BOTH, num_rounds=1, seed=0)
    assert (kept.response, kept.steps) == ("x", ())


async def test_a_budget_that_ends_leaves_the_steps_that_were_made_and_the_next_attempt_goes_on(ledger: Ledger) -> None:
    drafts = [Revision(prompt(n), "x") for n in range(3)]
    first = asker(ledger, Scripted(says), max_tokens=11 * 5)  # three critiques, two revisions
    made = await revise(drafts, first, BOTH, num_rounds=1, seed=0)
    assert first.stopped is not None
    assert [len(each.steps) for each in made] == [1, 1, 0]
    respondent = Scripted(says)
    finished = await revise(drafts, asker(ledger, respondent), BOTH, num_rounds=1, seed=0)
    assert [each.response for each in finished] == ["x!"] * 3
    assert len(respondent.asked) == 1


def test_records_show_the_whole_way_and_demonstrations_its_end() -> None:
    made = Revision(prompt(1, "people"), "no", (Step(1, "true", "no", "not true", "yes"),))
    assert made.record()["steps"] == [
        {"round": 1, "principle": "true", "response": "no", "critique": "not true", "revision": "yes"}
    ]
    assert (made.record()["first"], made.record()["response"]) == ("no", "yes")
    assert made.demonstration() == {
        "id": "p1",
        "kind": "people",
        "messages": [{"role": "user", "content": "question 1"}, {"role": "assistant", "content": "yes"}],
    }
