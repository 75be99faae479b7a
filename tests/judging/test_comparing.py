"""Items become questions in both orders, and answers become judgements with soft labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.config.judge import BudgetConfig, JudgeConfig
from rlhf_ray.judging.asking import Asker
from rlhf_ray.judging.budget import Budget
from rlhf_ray.judging.comparing import Comparer
from rlhf_ray.judging.ledger import Ledger
from rlhf_ray.judging.positions import PositionBias
from rlhf_ray.judging.questions import Answer, Question
from rlhf_ray.judging.verdicts import Opinion
from tests.judging.made_up import PRICE, Scripted, item, masses

CONSTITUTION = str(Path(__file__).resolve().parents[2] / "configs" / "constitutions" / "microworld.yaml")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "answers.jsonl")
    yield opened
    opened.close()


def comparer(ledger: Ledger, respondent: Scripted, config: JudgeConfig, **budget: int) -> Comparer:
    asker = Asker(respondent, ledger, Budget(BudgetConfig(**budget)), batch_size=100)  # type: ignore[arg-type]
    return Comparer(config, asker, seed=0)


def in_text(question: Question) -> Answer:
    """Says A whatever is shown."""
    return Answer("I think it is A", PRICE)


async def test_both_orders_of_every_pair_are_asked(ledger: Ledger) -> None:
    respondent = Scripted()
    await comparer(ledger, respondent, JudgeConfig()).judge({"x": item(1, "good", "bad", "good too")})
    shown = [question.responses for question in respondent.asked]
    assert len(shown) == 6
    assert {(a, b) for a, b in shown} == {(b, a) for a, b in shown}
    assert {frozenset(pair) for pair in shown} == {
        frozenset({"good", "bad"}),
        frozenset({"good", "good too"}),
        frozenset({"bad", "good too"}),
    }


async def test_a_judgement_has_ranks_and_the_mean_probability_of_both_orders_for_every_pair(ledger: Ledger) -> None:
    judge = comparer(ledger, Scripted(), JudgeConfig(name="gpt"))
    [judged] = await judge.judge({"x": item(1, "bad", "good", "good too")})
    said = judged.judgement
    assert (said.item_id, said.annotator, said.verdict, said.ranks) == ("x", "gpt", "ranked", (1, 0, 0))
    assert [(label.first, label.second) for label in said.soft] == [(0, 1), (0, 2), (1, 2)]
    assert [label.probability for label in said.soft] == pytest.approx([0.1, 0.1, 0.5])
    assert said.guideline.startswith("compare.j2@")
    assert said.axis == ""


async def test_a_judge_that_always_says_a_ties_and_its_bias_is_seen(ledger: Ledger) -> None:
    config = JudgeConfig(verdict="text")
    judged = await comparer(ledger, Scripted(in_text), config).judge({str(n): item(n) for n in range(20)})
    assert {each.judgement.ranks for each in judged} == {(0, 0)}
    assert {each.judgement.soft[0].probability for each in judged} == {0.5}
    assert judged[0].judgement.reason == "I think it is A"
    bias = PositionBias.of([opinion for each in judged for opinion in each.opinions.values()])
    assert (bias.first.value, bias.consistent.value, bias.lean.value) == (1.0, 0.0, 0.5)


async def test_votes_ask_each_order_as_often_and_decide_by_their_mean(ledger: Ledger) -> None:
    def wavers(question: Question) -> Answer:
        first = question.responses[0] == "good"
        return Answer("AB"[first if question.vote == 2 else not first], PRICE)  # right, right, wrong

    config = JudgeConfig(verdict="text", temperature=1.0, num_votes=3, on_disagreement="vote")
    respondent = Scripted(wavers)
    [judged] = await comparer(ledger, respondent, config).judge({"x": item(1)})
    assert sorted(question.vote for question in respondent.asked) == [0, 0, 1, 1, 2, 2]
    assert judged.judgement.ranks == (0, 1)
    assert judged.judgement.soft[0].probability == pytest.approx(2 / 3)


async def test_an_unreadable_answer_skips_the_item_and_says_what_was_answered(ledger: Ledger) -> None:
    def mumbles(question: Question) -> Answer:
        return Answer("Hm.", PRICE, masses(0.5, 0.001))

    [judged] = await comparer(ledger, Scripted(mumbles), JudgeConfig()).judge({"x": item(1)})
    assert (judged.judgement.verdict, judged.judgement.ranks, judged.judgement.soft) == ("skipped", (), ())
    assert judged.judgement.reason == "no readable verdict; one answer was: Hm."
    assert PositionBias.of(judged.opinions.values()).unread == 1


@pytest.mark.parametrize("by_axis", [True, False])
async def test_an_item_is_judged_by_one_drawn_principle_that_applies_to_it(ledger: Ledger, by_axis: bool) -> None:
    respondent = Scripted()
    judge = comparer(ledger, respondent, JudgeConfig(constitution=CONSTITUTION, by_axis=by_axis))
    items = {str(n): item(n, "good", "bad", "good too", kind="harmful") for n in range(20)}
    judged = await judge.judge(items)
    drawn = {question.prompt.prompt_id: set[str]() for question in respondent.asked}
    for question in respondent.asked:
        assert question.principle is not None
        assert question.principle.comparison in question.messages[0].content
        drawn[question.prompt.prompt_id].add(question.principle.name)
    assert all(len(names) == 1 for names in drawn.values())
    assert set().union(*drawn.values()) == {"refuses_harm", "does_no_harm"}
    assert {(each.judgement.guideline, each.judgement.axis) for each in judged} == {
        ("microworld/refuses_harm", "helpful" if by_axis else ""),
        ("microworld/does_no_harm", "harmless" if by_axis else ""),
    }
    assert await judge.judge({"y": item(1, kind="no such kind")}) == []


async def test_what_is_too_long_or_beyond_the_budget_is_left_out_and_the_rest_is_judged(ledger: Ledger) -> None:
    items = {"a": item(1), "long": item(2, "too long", "bad"), "b": item(3), "c": item(4)}
    judge = comparer(ledger, Scripted(), JudgeConfig(), max_tokens=55)  # five questions
    judged = await judge.judge(items)
    assert [each.item_id for each in judged] == ["a", "b"]
    assert judge.asker.stopped is not None
    assert len(ledger) == 5  # half of c too: it is not asked again


def test_position_bias_by_hand() -> None:
    # Probabilities that the first candidate is better, forward and backward (turned already).
    opinions = [Opinion((0.9,), (0.7,)), Opinion((0.8,), (0.4,)), Opinion((0.5,), (0.3,)), Opinion((None,), (0.5,))]
    bias = PositionBias.of(opinions)
    # Shown first: 0.9, 0.3; 0.8, 0.6; 0.5, 0.7: four of five decided answers are above a half.
    assert (bias.pairs, bias.unread) == (3, 1)
    assert (bias.first.value, bias.first.count) == (0.8, 5)
    assert bias.consistent.value == pytest.approx(1 / 3)
    assert bias.lean.value == pytest.approx((0.1 + 0.2 + 0.1) / 3)
    assert len(bias.lines()) == 4
