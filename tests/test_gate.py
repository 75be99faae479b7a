"""Our code costs at most a fifth more than it did, relative to the same work without it; and how that is judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks import gate
from benchmarks.gate_measures import MEASURES, Pair, calibration, in_turns, pairs_of


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", list(MEASURES))
def test_no_measure_costs_a_fifth_more_than_recorded(name: str) -> None:
    verdict = gate.judged(name, gate.ratios()[name], gate.measured)
    assert verdict.passed, f"{verdict}; if the change is worth it: python benchmarks/gate.py --record"


def answering(*ratios: float) -> tuple[gate.Measure, list[str]]:
    """A measure that gives these ratios one after the other, and the names that it was asked for."""
    asked: list[str] = []
    left: Iterator[float] = iter(ratios)

    def measure(name: str) -> Sequence[Pair]:
        asked.append(name)
        return [Pair(next(left), 1.0)] * 3

    return measure, asked


def test_a_measure_within_the_limit_is_taken_once() -> None:
    measure, asked = answering(1.19)
    assert gate.judged("update", 1.0, measure).passed
    assert asked == ["update"]


def test_a_noisy_attempt_is_forgiven() -> None:
    measure, _ = answering(3.0, 1.3, 1.1)
    verdict = gate.judged("update", 1.0, measure)
    assert (verdict.passed, verdict.attempts) == (True, (3.0, 1.3, 1.1))


def test_a_loss_of_more_than_a_fifth_fails_after_three_attempts() -> None:
    measure, asked = answering(1.3, 1.22, 1.25)
    verdict = gate.judged("update", 1.0, measure)
    assert (verdict.passed, len(asked)) == (False, gate.ATTEMPTS)
    assert str(verdict) == "update: 1.30, 1.22, 1.25 (recorded 1.00) FAILS: more than 1.2 times the recorded ratio"


def test_the_median_of_the_pairs_counts() -> None:
    assert gate.median_ratio([Pair(1.0, 1.0), Pair(9.0, 1.0), Pair(6.0, 4.0)]) == 1.5


def test_who_is_measured_first_changes_from_pair_to_pair() -> None:
    order: list[str] = []
    assert len(in_turns(lambda: order.append("ours"), lambda: order.append("bare"), 2)) == 2
    assert order == ["ours", "bare", "bare", "ours", "ours", "bare"]


def test_pairs_are_read_from_the_last_line_whatever_libraries_print() -> None:
    assert pairs_of('INFO loading\n\n[{"ours": 2.0, "bare": 1.0}]\n') == [Pair(2.0, 1.0)]


def test_the_calibration_takes_time() -> None:
    assert calibration(2000) > 0.0


def test_every_measure_is_recorded_and_described() -> None:
    assert set(gate.ratios()) == set(gate.WHAT) == set(MEASURES)


def test_a_measure_is_recorded_anew_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([2.0, 2.2, 2.1, 5.0])
    monkeypatch.setattr(gate, "measured", lambda name, pairs: [Pair(next(left), 1.0)] * pairs)
    page = gate.recorded(["driver"], 3, 2, "", tmp_path)
    assert "| 2.10 | 2.00, 2.20, 2.10 | 2.52 |" in page
    gate.recorded(["update"], 1, 2, "", tmp_path)
    assert {name: measure["ratio"] for name, measure in gate.measures_of(tmp_path).items()} == {
        "update": 5.0,
        "driver": 2.1,
    }
    assert (tmp_path / "gate.png").stat().st_size > 5000
