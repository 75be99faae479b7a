"""What is written is what is read, also after a kill; and the trace shows the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_ray.errors import DataError
from rlhf_ray.ledger.accounts import DRIVER, Account
from rlhf_ray.ledger.lives import read_story
from rlhf_ray.ledger.record import LEDGER_FILE, RunLedger, into_file
from rlhf_ray.ledger.spans import Books, Span
from rlhf_ray.ledger.trace import TRACE_FILE
from rlhf_ray.pipeline.accounting import StepLedger, drawn_up, ledger_of
from tests.supervision.clock import ManualClock

STEP = {
    "ppo/kl_per_response": 0.1,
    "ppo/prompts": 4.0,
    "ppo/sampled_tokens": 80.0,
    "ppo/trained_response_tokens": 60.0,
    "ppo/trained_tokens": 100.0,
}


def written(directory: Path, clock: ManualClock) -> RunLedger:
    """A trainer that learns for 8 of 10 seconds."""
    ledger = RunLedger(into_file(directory), clock)
    ledger.stage("ppo")
    ledger.begins("trainer 0", "trainer")
    begun = clock.now
    clock.advance(10)
    spans = (Span(Account.START_UP, begun, begun + 2), Span(Account.POLICY, begun + 2, clock.now))
    ledger.books("trainer 0", Books(begun, clock.now, spans))
    return ledger


def test_the_ledger_of_a_run_that_was_killed_and_went_on_is_one(tmp_path: Path) -> None:
    clock = ManualClock(1000.0)
    written(tmp_path, clock)
    with (tmp_path / LEDGER_FILE).open("a") as file:
        file.write('{"event": "boo')  # the kill
    clock.advance(500)
    ledger = written(tmp_path, clock)
    ledger.ends("trainer 0", "closed")
    ledger.close()
    found = drawn_up(tmp_path)
    assert found is not None
    assert found.wall_s == 20.0
    assert found.by_role["trainer"] == {Account.START_UP: 4.0, Account.POLICY: 16.0}
    assert found.balances


def test_a_file_that_is_no_ledger_is_an_error_that_names_it(tmp_path: Path) -> None:
    assert read_story(tmp_path) is None
    (tmp_path / LEDGER_FILE).write_text('{"event": "begins", "worker": "x"}\n')
    with pytest.raises(DataError, match=LEDGER_FILE):
        read_story(tmp_path)


def test_the_trace_has_a_lane_a_worker_and_the_seconds_of_the_accounts(tmp_path: Path) -> None:
    ledger = written(tmp_path, ManualClock(1000.0))
    ledger.ends("trainer 0", "closed")
    ledger.close()
    drawn_up(tmp_path)
    events = json.loads((tmp_path / TRACE_FILE).read_text())["traceEvents"]
    names = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert list(names) == ["stages", DRIVER, "trainer 0"]
    own = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == names["trainer 0"]]
    assert own == [("start-up", 0, 2_000_000), ("policy update", 2_000_000, 8_000_000)]
    assert [e["name"] for e in events if e["ph"] == "X" and e["tid"] == names["stages"]] == ["ppo"]


def test_a_run_that_fails_closes_its_ledger(tmp_path: Path) -> None:
    def fail() -> None:
        with ledger_of(tmp_path) as ledger:
            ledger.begins("trainer 0", "trainer")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    story = read_story(tmp_path)
    assert story is not None
    assert [(life.worker, life.how) for life in story.lives] == [(DRIVER, "closed"), ("trainer 0", "silent")]


def test_a_step_counts_what_it_sampled_again_and_a_skipped_one_has_used_nothing(tmp_path: Path) -> None:
    clock = ManualClock(1000.0)
    ledger = RunLedger(into_file(tmp_path), clock)
    steps = StepLedger(ledger)
    for number, (metrics, lost) in enumerate(((STEP, 0), (STEP, 20), ({**STEP}, 20))):
        steps.begins("generate")
        clock.advance(3)
        steps.begins("sync")
        clock.advance(1)
        told = {name: value for name, value in metrics.items() if number < 2 or name != "ppo/kl_per_response"}
        steps.ends(told, lost)
        clock.advance(100)  # evaluation, a checkpoint: of no step
    ledger.close()
    story = read_story(tmp_path)
    assert story is not None
    assert [(s.sampled, s.discarded, s.trained, s.seconds) for s in story.steps] == [
        (80, 20, 100, 4.0),
        (100, 40, 100, 4.0),
        (80, 80, 0, 4.0),
    ]
    assert [(d.account, d.ended - d.begun) for d in story.during] == [(Account.SYNC, 1.0)] * 3


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    ledger = RunLedger(into_file(tmp_path), ManualClock())
    (tmp_path / LEDGER_FILE).unlink()
    (tmp_path / LEDGER_FILE).mkdir()  # nothing can be appended to a directory
    ledger.stage("ppo")
    ledger.close()
    (tmp_path / LEDGER_FILE).rmdir()
    ledger.stage("evaluation")
    story = read_story(tmp_path)
    assert story is not None
    assert [name for name, _ in story.stages] == ["evaluation"]
