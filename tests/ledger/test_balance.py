"""Every second stands in one account; time that nobody knows, or that was booked twice, shows in the balance."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.ledger.accounts import DRIVER, Account
from rlhf_ray.ledger.balance import Balance, balance
from rlhf_ray.ledger.lanes import lanes
from rlhf_ray.ledger.lives import Story, told
from tests.ledger.made_up import begins, books, during, ends, run, step

WORK = (Account.GENERATION, Account.SCORING, Account.POLICY, Account.SYNC, Account.CHECKPOINT, Account.START_UP)

LOADS = (Account.START_UP, 12.0, 13.0)


def accounts(story: Story, worker: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for span in lanes(story)[worker]:
        found[str(span.account)] = found.get(str(span.account), 0.0) + span.seconds
    return found


def step_of_two() -> list[dict[str, Any]]:
    """A generator samples from 20 to 50, the trainer learns from 50 to 80; both are there from 0 to 100.

    They are asked to serve at 10, have unpacked what they are given at 12, and serve from 13 on.
    """
    return [
        begins("generator 0", 0.0),
        begins("trainer 0", 0.0),
        books("generator 0", 10.0, 95.0, LOADS, (Account.GENERATION, 20.0, 50.0), (Account.SYNC, 80.0, 90.0)),
        books("trainer 0", 10.0, 95.0, LOADS, (Account.POLICY, 50.0, 80.0), (Account.SYNC, 82.0, 88.0)),
        ends("generator 0", 100.0),
        ends("trainer 0", 100.0),
    ]


# --------------------------------------------------------------------------------------------------------- what counts
def test_who_has_nothing_to_do_waits_for_those_who_work() -> None:
    story = run(*step_of_two())
    assert accounts(story, "trainer 0") == {
        "start-up": 18.0,  # until it serves, and after its last words
        "driver": 12.0,  # 13 to 20, 90 to 95: nobody works
        "waiting for rollouts": 30.0,
        "policy update": 30.0,
        "weight sync": 10.0,  # 80 to 82 and 88 to 90 it waits for the generator's part of it
    }
    assert accounts(story, "generator 0") == {
        "start-up": 18.0,
        "driver": 12.0,
        "useful generation": 30.0,
        "waiting for trainer": 30.0,
        "weight sync": 10.0,
    }


def test_the_drivers_own_time_is_that_in_which_nobody_works() -> None:
    assert accounts(run(*step_of_two()), DRIVER)["driver"] == 12.0


def test_the_driver_starts_up_until_its_first_stage() -> None:
    story = run(*step_of_two(), {"event": "stage", "name": "sft", "at": 17.0})
    assert accounts(story, DRIVER)["start-up"] == 17.0 + 5.0
    assert accounts(story, DRIVER)["driver"] == 3.0 + 5.0


def test_a_generator_waits_for_the_trainer_and_all_others_for_generators() -> None:
    story = run(
        begins("generator 0", 0.0),
        begins("generator 1", 0.0),
        begins("trainer 0", 0.0),
        begins("reference 0", 0.0),
        books("generator 0", 0.0, 100.0, (Account.GENERATION, 0.0, 100.0)),
        books("generator 1", 0.0, 100.0),
        books("trainer 0", 0.0, 100.0, (Account.CRITIC, 0.0, 50.0)),
        books("reference 0", 0.0, 100.0),
        *(ends(worker, 100.0) for worker in ("generator 0", "generator 1", "trainer 0", "reference 0")),
    )
    assert accounts(story, "generator 1") == {"waiting for trainer": 50.0, "waiting for rollouts": 50.0}
    assert accounts(story, "reference 0") == {"waiting for rollouts": 100.0}


def test_generation_is_useful_by_the_share_of_its_tokens() -> None:
    story = run(*step_of_two(), step(15.0, 90.0, sampled=300, discarded=100))
    found = accounts(story, "generator 0")
    assert found["useful generation"] == pytest.approx(20.0)
    assert found["discarded generation"] == pytest.approx(10.0)


def test_an_evaluation_takes_everything_but_what_it_does_not_explain() -> None:
    story = run(*step_of_two(), during(Account.EVALUATION, 5.0, 40.0), step(40.0, 90.0, sampled=4, discarded=2))
    assert accounts(story, "generator 0") == {
        "start-up": 18.0,
        "evaluation": 27.0,  # 13 to 40
        "useful generation": 5.0,
        "discarded generation": 5.0,
        "waiting for trainer": 30.0,
        "weight sync": 10.0,
        "driver": 5.0,
    }


def test_in_a_sync_messages_under_way_are_part_of_it_and_work_stays_what_it_is() -> None:
    story = run(*step_of_two(), during(Account.SYNC, 70.0, 95.0))
    found = accounts(story, "trainer 0")
    assert found["weight sync"] == 15.0
    assert found["policy update"] == 30.0


def test_steps_that_are_taken_again_are_the_price_of_the_restart() -> None:
    found = accounts(run(*step_of_two(), during(Account.RESTART, 50.0, 70.0, "trainer")), "trainer 0")
    assert found["restart"] == 20.0
    assert found["policy update"] == 10.0


def test_a_lost_worker_is_booked_to_the_restart_from_its_last_words_on() -> None:
    story = run(
        begins("generator 0", 0.0),
        books("generator 0", 0.0, 30.0, (Account.GENERATION, 0.0, 30.0)),
        ends("generator 0", 40.0, "lost"),
        begins("generator 1", 45.0, restart=True),
        books("generator 1", 50.0, 100.0, (Account.START_UP, 50.0, 60.0), (Account.GENERATION, 60.0, 100.0)),
        ends("generator 1", 100.0),
    )
    assert accounts(story, "generator 0") == {"useful generation": 30.0, "restart": 10.0}
    assert accounts(story, "generator 1") == {"restart": 15.0, "useful generation": 40.0}
    assert balance(story).balances


def test_who_is_kept_for_a_later_stage_rests() -> None:
    story = run(
        begins("trainer 0", 0.0),
        books("trainer 0", 0.0, 40.0, (Account.FITTING, 0.0, 40.0)),
        {"event": "rests", "worker": "trainer 0", "at": 40.0},
        {"event": "wakes", "worker": "trainer 0", "at": 70.0},
        books("trainer 0", 40.0, 80.0, (Account.FITTING, 73.0, 80.0)),
        {"event": "rests", "worker": "trainer 0", "at": 80.0},
        ends("trainer 0", 100.0),
    )
    assert accounts(story, "trainer 0") == {"fitting": 47.0, "at rest": 50.0, "start-up": 3.0}


# ---------------------------------------------------------------------------------------------------------- the balance
def test_the_accounts_sum_to_the_time_of_the_workers() -> None:
    found = balance(run(*step_of_two()))
    assert found.there_s == 300.0
    assert found.booked_s == pytest.approx(300.0)
    assert found.difference == pytest.approx(0.0)
    assert found.balances


def test_time_that_no_books_cover_does_not_balance() -> None:
    events = step_of_two()
    events[3] = books("trainer 0", 10.0, 60.0, (Account.POLICY, 50.0, 60.0))
    events[5] = ends("trainer 0", 100.0, "silent")
    found = balance(run(*events))
    assert found.difference == pytest.approx(40 / 300)
    assert not found.balances


def test_a_second_that_is_booked_twice_does_not_balance() -> None:
    events = step_of_two()
    events[3] = books("trainer 0", 10.0, 95.0, (Account.POLICY, 50.0, 80.0), (Account.CRITIC, 60.0, 80.0))
    found = balance(run(*events))
    assert found.difference == pytest.approx(20 / 300)
    assert not found.balances


def test_too_much_of_one_worker_does_not_make_up_for_another() -> None:
    events = step_of_two()
    events[2] = books("generator 0", 10.0, 95.0, (Account.GENERATION, 20.0, 50.0), (Account.SYNC, 30.0, 50.0))
    events[3] = books("trainer 0", 10.0, 80.0, (Account.POLICY, 50.0, 80.0))
    events[5] = ends("trainer 0", 100.0, "silent")
    found = balance(run(*events))
    assert found.booked_s == pytest.approx(found.there_s)
    assert found.difference == pytest.approx(40 / 300)


def test_books_of_a_clock_that_runs_apart_do_not_balance() -> None:
    shifted = [
        begins("trainer 0", 0.0),
        books("trainer 0", 30.0, 110.0, (Account.FITTING, 30.0, 110.0)),
        ends("trainer 0", 80.0),
    ]
    assert not balance(run(*shifted)).balances


@st.composite
def whole_runs(draw: st.DrawFn) -> Story:
    """Up to four workers that do this and that, each in pieces of whole seconds, some of them lost in the end."""
    events = []
    for number in range(draw(st.integers(1, 4))):
        worker = f"{draw(st.sampled_from(['generator', 'trainer', 'reference']))} {number}"
        begun = at = float(draw(st.integers(0, 20)))
        at += draw(st.integers(0, 5))
        events.append(begins(worker, begun, restart=draw(st.booleans())))
        for _ in range(draw(st.integers(1, 3))):
            since, spans = at, []
            for account, pause, length in draw(
                st.lists(st.tuples(st.sampled_from(WORK), st.integers(0, 3), st.integers(1, 5)), max_size=5)
            ):
                spans.append((account, at + pause, at + pause + length))
                at += pause + length
            events.append(books(worker, since, at, *spans))
        events.append(ends(worker, at + draw(st.integers(0, 4)), draw(st.sampled_from(["closed", "lost"]))))
    marks = draw(st.lists(st.integers(0, 120), max_size=6, unique=True).map(sorted))
    for begun, ended in zip(marks[::2], marks[1::2], strict=False):
        events.append(step(begun, ended, sampled=10, discarded=draw(st.integers(0, 10))))
    for account in draw(st.sets(st.sampled_from([Account.EVALUATION, Account.SYNC, Account.RESTART]))):
        begun = draw(st.integers(0, 100))
        events.append(during(account, begun, begun + draw(st.integers(0, 30)), draw(st.sampled_from(["", "trainer"]))))
    return run(*events, until=120.0)


@given(whole_runs())
def test_in_any_run_each_second_of_a_life_is_in_exactly_one_account(story: Story) -> None:
    drawn = lanes(story)
    for worker, spans in drawn.items():
        lives = [life for life in story.lives if life.worker == worker]
        assert sum(span.seconds for span in spans) == pytest.approx(sum(life.seconds for life in lives))
        assert all(one.ended <= other.begun + 1e-9 for one, other in pairwise(spans))
    assert balance(story, drawn).difference == pytest.approx(0.0, abs=1e-9)


# ------------------------------------------------------------------------------------------------------ more than one
def test_a_run_that_was_killed_and_went_on_is_added_up_as_one() -> None:
    first = [
        begins(DRIVER, 0.0),
        begins("trainer 0", 5.0),
        books("trainer 0", 10.0, 30.0, (Account.POLICY, 10.0, 30.0)),
    ]
    killed_at = {"event": "stage", "name": "ppo", "at": 50.0}
    second = [begins(DRIVER, 1000.0), begins("trainer 0", 1000.0), books("trainer 0", 1000.0, 1010.0)]
    story = told([*first, killed_at, *second, ends("trainer 0", 1010.0), ends(DRIVER, 1020.0)])
    found = balance(story)
    assert found.wall_s == 70.0
    assert {w.worker: w.there_s for w in found.workers} == {DRIVER: 70.0, "trainer 0": 55.0}
    assert accounts(story, "trainer 0")["restart"] == 20.0
    assert found.difference == pytest.approx(0.0)


def test_stages_share_what_happens_in_them() -> None:
    stages = [{"event": "stage", "name": name, "at": at} for name, at in (("sft", 0.0), ("ppo", 50.0))]
    found: Balance = balance(run(*step_of_two(), *stages))
    assert found.by_stage["sft"][Account.GENERATION] == 30.0
    assert found.by_stage["ppo"][Account.POLICY] == 30.0
    assert Account.POLICY not in found.by_stage["sft"]
    assert sum(sum(sums.values()) for sums in found.by_stage.values()) == pytest.approx(300.0)


def test_throughput_counts_the_seconds_of_steps_and_the_workers_that_were_there_for_them() -> None:
    story = run(
        begins("trainer 0", 0.0, gpus=2.0),
        begins("generator 0", 0.0),
        ends("trainer 0", 100.0, "lost"),
        ends("generator 0", 30.0, "lost"),
        step(10.0, 20.0, sampled=100),
        step(40.0, 50.0, sampled=300, discarded=100),
    )
    found = balance(story).throughput
    assert found is not None
    assert (found.steps, found.seconds, found.workers, found.gpus) == (2, 20.0, 1.5, 2.0)
    assert found.rates() == {
        "prompts_per_second": 1.0,
        "prompts_per_second_per_worker": pytest.approx(2 / 3),
        "prompts_per_second_per_gpu": 0.5,
        "sampled_tokens_per_second": 20.0,
        "sampled_tokens_per_second_per_worker": pytest.approx(40 / 3),
        "sampled_tokens_per_second_per_gpu": 10.0,
        "trained_tokens_per_second": 30.0,
        "trained_tokens_per_second_per_worker": 20.0,
        "trained_tokens_per_second_per_gpu": 15.0,
    }
