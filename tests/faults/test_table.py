"""The recorder of the fault matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.table import FaultCase, fault_case, rendered


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(table, "CASES", [])
    path = tmp_path / "table.jsonl"
    monkeypatch.setenv(table.VARIABLE, str(path))
    return path


def test_a_case_is_recorded_with_the_seconds_since_the_fault(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.5, 14.0])
    monkeypatch.setattr(table.time, "monotonic", lambda: next(times))
    with fault_case("generator", "generating", "rollouts equal") as watch:
        watch.struck()
        watch.noticed()
        watch.recovered()
    assert [FaultCase("generator", "generating", 1.5, 4.0, "rollouts equal")] == table.CASES
    assert json.loads(cases.read_text())["detection_s"] == 1.5


@pytest.mark.usefixtures("cases")
def test_a_case_that_fails_says_how_and_goes_on_failing() -> None:
    def fail() -> None:
        with fault_case("node", "idle", "placed again") as watch:
            watch.struck()
            raise ValueError("lost a rollout\nand more")

    with pytest.raises(ValueError, match="lost a rollout"):
        fail()
    assert table.CASES[0].outcome == "FAILED: ValueError: lost a rollout"
    assert table.CASES[0].detection_s is None


def test_the_table_is_aligned_and_shows_what_is_not_known_as_a_dash() -> None:
    shown = rendered([FaultCase("generator", "idle", 0.25, None, "ok"), FaultCase("node", "in a sync", 1, 12.34, "ok")])
    assert shown.splitlines() == [
        "victim     phase      detected s  recovered s  outcome",
        "generator  idle       0.2         -            ok",
        "node       in a sync  1.0         12.3         ok",
    ]
