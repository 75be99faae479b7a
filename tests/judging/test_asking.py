"""The ledger, the budget, the cache: nothing is asked twice, nothing that was answered is lost, no limit is passed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.config.judge import BudgetConfig
from rlhf_ray.errors import DataError
from rlhf_ray.judging.asking import Asker
from rlhf_ray.judging.budget import Budget
from rlhf_ray.judging.ledger import Ledger, key_of
from rlhf_ray.judging.questions import Answer, Question, Usage
from rlhf_ray.records import Message
from tests.judging.made_up import PRICE, Scripted, prompt

CHECKOUT = Path(__file__).resolve().parents[2]


def question(number: int, *, vote: int = 0) -> Question:
    return Question("compare", (Message("user", f"{number}?"),), prompt(number), ("good", "bad"), vote=vote)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "judge" / "answers.jsonl")
    yield opened
    opened.close()


def asker(ledger: Ledger, respondent: Scripted, *, batch_size: int = 4, **budget: float) -> Asker:
    config = BudgetConfig(**budget)  # type: ignore[arg-type]
    return Asker(respondent, ledger, Budget(config, ledger.usage), batch_size=batch_size)


# ------------------------------------------------------------------------------------------------------------- keys
def test_a_key_depends_on_all_that_decides_an_answer_and_on_nothing_else() -> None:
    one = question(1)
    keys = {
        key_of(one, {"kind": "a"}),
        key_of(one, {"kind": "b"}),
        key_of(question(2), {"kind": "a"}),
        key_of(question(1, vote=1), {"kind": "a"}),
        key_of(Question("critique", one.messages, one.prompt, one.responses), {"kind": "a"}),
        key_of(Question("compare", one.messages, one.prompt, ("bad", "good")), {"kind": "a"}),
    }
    assert len(keys) == 6
    assert key_of(question(1), {"kind": "a"}) in keys


# ------------------------------------------------------------------------------------------------------------ cache
async def test_what_was_answered_is_not_asked_again_in_this_process_or_the_next(tmp_path: Path) -> None:
    path, respondent = tmp_path / "answers.jsonl", Scripted()
    first = Ledger(path)
    answers = await asker(first, respondent).ask([question(n) for n in (1, 2, 3)])
    again = await asker(first, respondent).ask([question(n) for n in (3, 1, 4)])
    first.close()
    assert len(respondent.asked) == 4
    assert again[:2] == [answers[2], answers[0]]
    second = Ledger(path)
    other = asker(second, Scripted())
    assert await other.ask([question(n) for n in (1, 2, 3, 4)]) == [*answers, again[2]]
    assert (other.counts.asked, other.counts.found, other.counts.usage) == (0, 4, Usage())
    assert second.usage == Usage(40, 4)
    second.close()


async def test_equal_questions_are_asked_once(ledger: Ledger) -> None:
    respondent = Scripted()
    answers = await asker(ledger, respondent).ask([question(1), question(1), question(1, vote=1)])
    assert len(respondent.asked) == 2
    assert answers[0] == answers[1]


async def test_every_question_and_answer_can_be_read(ledger: Ledger) -> None:
    await asker(ledger, Scripted()).ask([question(1)])
    [row] = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert row.pop("at").endswith("+00:00")
    assert row.pop("key") == key_of(question(1), {"kind": "scripted"})
    assert row.pop("masses") == pytest.approx({"A": 0.9, "B": 0.1})
    assert row == {
        "purpose": "compare",
        "prompt_id": "p1",
        "kind": "",
        "principle": "",
        "vote": 0,
        "responses": ["good", "bad"],
        "messages": [{"role": "user", "content": "1?"}],
        "answer": "A",
        "tokens_read": 10,
        "tokens_written": 1,
    }


async def test_a_question_without_room_is_left_out_and_counted(ledger: Ledger) -> None:
    long = Question("compare", (Message("user", "?"),), prompt(9), ("too long", "bad"))
    asking = asker(ledger, Scripted())
    answers = await asking.ask([question(1), long])
    assert (answers[0] is not None, answers[1]) == (True, None)
    assert (asking.counts.too_long, asking.stopped) == (1, None)


# ----------------------------------------------------------------------------------------------------------- budget
async def test_the_budget_is_never_passed_and_what_was_answered_is_kept(ledger: Ledger) -> None:
    respondent = Scripted()
    asking = asker(ledger, respondent, max_tokens=60)  # 11 tokens a question: five fit, and four in a batch
    answers = await asking.ask([question(n) for n in range(8)])
    assert [answer is not None for answer in answers] == [True] * 5 + [False] * 3
    assert ledger.usage.tokens == 55
    assert "3 questions were not asked" in str(asking.stopped)
    raised = asker(ledger, respondent, max_tokens=88)  # the bill counts what earlier attempts spent
    assert all(await raised.ask([question(n) for n in range(8)]))
    assert (raised.stopped, len(respondent.asked)) == (None, 8)


async def test_a_budget_in_money_counts_tokens_read_and_written_at_their_prices(ledger: Ledger) -> None:
    # A question costs (10 * 2 + 1 * 30) / 1e6 = 50e-6.
    budget = {"max_money": 120e-6, "price_read": 2.0, "price_written": 30.0}
    asking = asker(ledger, Scripted(), **budget)
    await asking.ask([question(n) for n in range(5)])
    assert asking.budget.money(ledger.usage) == pytest.approx(100e-6)
    assert "0.0001 in money; 3 questions" in str(asking.stopped)


async def test_a_budget_of_nothing_still_gives_what_is_known(ledger: Ledger) -> None:
    await asker(ledger, Scripted()).ask([question(1)])
    asking = asker(ledger, Scripted(), max_tokens=0)
    answers = await asking.ask([question(1), question(2)])
    assert (answers[0] is not None, answers[1], asking.stopped is not None) == (True, None, True)


# ------------------------------------------------------------------------------------------------------------ damage
def test_half_a_line_of_a_power_cut_is_cut_off_and_the_rest_is_there(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with_one = Ledger(path)
    with_one.append("k", question(1), Answer("A", PRICE))
    with_one.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    again = Ledger(path)
    again.append("l", question(2), Answer("B", PRICE))
    again.close()
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["k", "l"]


def test_a_damaged_ledger_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "k"}\n')
    with pytest.raises(DataError, match=r"answers\.jsonl:1: is no answer of a judge"):
        Ledger(path)


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.judging.test_asking import asker, question
from tests.judging.made_up import Scripted, prefers_good
from rlhf_ray.judging.ledger import Ledger
def says(asked):
    print(asked.prompt.prompt_id, flush=True)
    return prefers_good(asked)
ledger = Ledger(Path(sys.argv[1]))
asyncio.run(asker(ledger, Scripted(says), batch_size=10).ask([question(n) for n in range(100_000)]))
"""


async def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(25):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    answered = 25 + len(process.stdout.read().split())
    process.stdout.close()
    process.wait(timeout=30)
    ledger, respondent = Ledger(path), Scripted()
    assert len(ledger) >= answered - 1  # the last may have been answered and not yet written
    known = len(ledger)
    await asker(ledger, respondent, batch_size=10).ask([question(n) for n in range(known + 50)])
    ledger.close()
    assert len(respondent.asked) == 50
