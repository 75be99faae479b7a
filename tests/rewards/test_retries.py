"""The store of retries: emptied by failures, filled by answers, never beyond its size."""

from __future__ import annotations

from rlhf_ray.rewards.retries import RetryBudget


def test_retries_end_when_the_store_is_empty_and_come_back_with_answers() -> None:
    budget = RetryBudget(most=2.0, earned=0.5)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.answered()
    assert not budget.take()
    budget.answered()
    assert [budget.take(), budget.take()] == [True, False]


def test_no_more_is_stored_than_fits() -> None:
    budget = RetryBudget(most=1.0, earned=0.5)
    for _ in range(10):
        budget.answered()
    assert [budget.take(), budget.take()] == [True, False]
