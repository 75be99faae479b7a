"""Days of an endpoint: quiet ones raise no alarm, a break and a slow slide do."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rlhf_ray.metrics.drift import drift


def days(shares: list[float], *, answers: int = 200, seed: int = 0) -> dict[str, list[float]]:
    """Yes or no, so many a day, with that chance of yes."""
    draw = random.Random(seed)
    return {
        f"2030-01-{day:02}": [float(draw.random() < share) for _ in range(answers)]
        for day, share in enumerate(shares, 1)
    }


def test_a_day_is_compared_with_the_first_days_by_hand() -> None:
    values = {"2030-01-01": [0.0, 2.0], "2030-01-02": [0.0, 2.0], "2030-01-03": [5.0, 7.0]}
    found = drift("words", values, baseline_days=2)
    # Baseline: mean 1, variance of single values 4/3, days' means alike. Deviation of the difference:
    assert found.days[2].z == pytest.approx(5.0 / np.sqrt(4 / 3 / 2 + 4 / 3 / 4))
    assert (found.baseline, found.days[2].interval.value) == (1.0, 6.0)
    assert [day.is_baseline for day in found.days] == [True, True, False]


def test_a_break_is_sudden_and_names_its_days() -> None:
    found = drift("refusals", days([0.05] * 10 + [0.2, 0.05]), baseline_days=7)
    assert [(alarm.day, alarm.kind) for alarm in found.alarms if alarm.kind == "sudden"] == [("2030-01-11", "sudden")]
    assert "2030-01-11: refusals" in str(found.alarms[0])


def test_a_slide_that_no_single_day_shows_adds_up() -> None:
    found = drift("refusals", days([0.10] * 7 + [0.10 + 0.004 * day for day in range(1, 15)], seed=2), baseline_days=7)
    assert "slow" in {alarm.kind for alarm in found.alarms}


def test_quiet_logs_seldom_raise_an_alarm() -> None:
    alarms = sum(
        bool(drift("r", days([0.1] * 21, answers=60, seed=seed), baseline_days=7).alarms) for seed in range(100)
    )
    assert alarms <= 9  # 1% by days far off, 3% by sums


def test_days_that_differ_by_themselves_are_no_alarm() -> None:
    draw = random.Random(1)
    shares = [min(0.9, max(0.05, draw.gauss(0.3, 0.08))) for _ in range(21)]  # weekdays and week-ends, say
    assert not drift("refusals", days(shares, answers=2000), baseline_days=10).alarms


def test_what_never_happened_and_then_does_is_an_alarm_only_in_numbers() -> None:
    quiet = {f"2030-01-0{day}": [0.0] * 50 for day in range(1, 8)}
    once = drift("refusals", quiet | {"2030-01-08": [1.0] + [0.0] * 49}, baseline_days=7)
    often = drift("refusals", quiet | {"2030-01-08": [1.0] * 25 + [0.0] * 25}, baseline_days=7)
    assert (len(once.alarms), bool(often.alarms)) == (0, True)


def test_too_few_days_are_shown_and_not_compared() -> None:
    found = drift("refusals", days([0.1, 0.9]), baseline_days=2)
    assert (len(found.days), found.alarms) == (2, ())
    assert np.isnan(found.baseline)
    with pytest.raises(ValueError, match="baseline_days"):
        drift("refusals", {}, baseline_days=0)
