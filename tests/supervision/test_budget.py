"""Restart budgets: so many in so many seconds, each kind of fault for itself."""

from __future__ import annotations

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.supervision.budget import Exhausted, Restart, RestartBudget, RestartLimit
from tests.supervision.clock import ManualClock


def budget_of(clock: ManualClock, *, infrastructure: int = 3, data: int = 1) -> RestartBudget:
    return RestartBudget(
        infrastructure=RestartLimit(infrastructure, window_s=100.0, backoff_s=2.0, max_backoff_s=5.0),
        data=RestartLimit(data, window_s=1000.0),
        clock=clock,
    )


def test_the_first_restart_is_at_once_and_the_wait_doubles_up_to_its_limit() -> None:
    budget = budget_of(ManualClock(), infrastructure=5)
    spent = [budget.spend("infrastructure") for _ in range(5)]
    assert spent == [Restart(delay, number, 5) for number, delay in enumerate([0.0, 2.0, 4.0, 5.0, 5.0], start=1)]


def test_a_used_up_budget_says_what_was_used_up() -> None:
    budget = budget_of(ManualClock())
    for _ in range(3):
        assert isinstance(budget.spend("infrastructure"), Restart)
    verdict = budget.spend("infrastructure")
    assert isinstance(verdict, Exhausted)
    assert str(verdict) == "3 restarts after infrastructure faults within 100 s are used up"


def test_restarts_come_back_as_they_leave_the_window_and_the_wait_starts_anew() -> None:
    clock = ManualClock()
    budget = budget_of(clock)
    for _ in range(3):
        budget.spend("infrastructure")
        clock.advance(10.0)
    assert budget.left("infrastructure") == 0
    clock.now = 100.0
    assert budget.left("infrastructure") == 1
    assert budget.spend("infrastructure") == Restart(4.0, 3, 3)
    clock.now = 500.0
    assert budget.spend("infrastructure") == Restart(0.0, 1, 3)
    assert budget.total("infrastructure") == 5


def test_faults_of_data_and_infrastructure_are_counted_apart() -> None:
    budget = budget_of(ManualClock())
    assert isinstance(budget.spend("data"), Restart)
    assert isinstance(budget.spend("data"), Exhausted)
    assert budget.left("infrastructure") == 3
    assert (budget.total("data"), budget.total("infrastructure")) == (1, 0)


def test_a_limit_of_none_allows_no_restart() -> None:
    assert isinstance(budget_of(ManualClock(), infrastructure=0).spend("infrastructure"), Exhausted)


def test_a_backoff_above_its_maximum_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not exceed"):
        RestartLimit(1, window_s=1.0, backoff_s=9.0, max_backoff_s=5.0)
