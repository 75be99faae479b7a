"""From where a new trainer begins, and which steps it takes again."""

from __future__ import annotations

import pytest

from rlhf_ray.supervision.journal import Journal, KeptStep, NoWayBackError, SavedTrainer

STATE = SavedTrainer("state/step_00000002", "trainer")


def step(number: int) -> KeptStep:
    return KeptStep(number, (), 0.1, {})


def after(journal: Journal, *numbers: int) -> Journal:
    for number in numbers:
        journal.trained(step(number))
    return journal


def test_without_a_state_all_steps_are_taken_again_from_the_first_models() -> None:
    assert after(Journal(8), 1, 2).way_back() == (None, (step(1), step(2)))


def test_a_state_lets_the_steps_before_it_go_and_keeps_those_that_were_taken_while_it_was_written() -> None:
    journal = after(Journal(8), 1, 2, 3)
    journal.saved(STATE, step=2)
    assert journal.way_back() == (STATE, (step(3),))


def test_a_loaded_state_is_where_the_trainer_begins() -> None:
    journal = after(Journal(8), 1, 2)
    journal.loaded(STATE)
    assert after(journal, 3).way_back() == (STATE, (step(3),))


def test_too_many_steps_are_let_go_and_the_way_back_says_what_to_set() -> None:
    journal = after(Journal(2), 1, 2, 3)
    with pytest.raises(NoWayBackError, match=r"3 steps have passed .* checkpoints\.fit_every, to no more"):
        journal.way_back()


def test_after_the_next_state_there_is_a_way_back_again() -> None:
    journal = after(Journal(2), 1, 2, 3)
    journal.saved(STATE, step=3)
    assert after(journal, 4).way_back() == (STATE, (step(4),))
