"""Logs of an endpoint: what a line may look like, days in UTC, and the command that shows them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.data.jsonl import Record, read_jsonl
from rlhf_ray.errors import DataError
from rlhf_ray.suites.log import Logged, parse_logged

SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        ({"time": "2030-01-31T23:30:00-02:00", "response": "a"}, Logged("2030-02-01", "a")),
        ({"timestamp": 1896134400, "messages": SAID, "rating": 4}, Logged("2030-02-01", "a", 4.0)),
        ({"created": 1896134400000, "messages": SAID, "thumbs": "down"}, Logged("2030-02-01", "a", 0.0)),
        ({"created": 1896134400, "choices": [{"message": SAID[1]}], "feedback": True}, Logged("2030-02-01", "a", 1.0)),
        ({"time": "2030-02-01", "response": "a", "satisfaction": None}, Logged("2030-02-01", "a")),
    ],
)
def test_a_line_of_a_log_is_read(value: dict[str, Any], logged: Logged) -> None:
    assert parse_logged(Record(value, "log:1")) == logged


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"response": "a"}, "log:7: has no time under time"),
        ({"time": "yesterday", "response": "a"}, "log:7: 'yesterday' is no time"),
        ({"time": 1e300, "response": "a"}, "is no time"),
        ({"time": 0, "messages": SAID[:1]}, "log:7: has no answer"),
        ({"time": 0, "response": "a", "rating": "fine"}, "must be a number, true, false, up or down"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_with_its_place(value: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_logged(Record(value, "log:7"))


def write_log(path: Path, refusing: list[float]) -> Path:
    draw = random.Random(0)
    lines = [
        {"time": f"2030-01-{day:02}T10:00:00Z", "response": "I cannot help." if draw.random() < share else "Gladly!"}
        for day, share in enumerate(refusing, 1)
        for _ in range(100)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_drift_shows_every_day_and_ends_with_status_1_at_an_alarm(tmp_path: Path) -> None:
    log, target = write_log(tmp_path / "log.jsonl", [0.1] * 7 + [0.1, 0.6]), tmp_path / "days.jsonl"
    done = CliRunner().invoke(app, ["drift", str(log), "--output", str(target)], env={"COLUMNS": "160"})
    assert done.exit_code == 1, done.output
    assert "alarm  2030-01-09: drift/refusals" in done.output
    rows = [dict(record.value) for record in read_jsonl(target)]
    assert len(rows) == 2 * 9
    assert [row["day"] for row in rows if "sudden" in row["alarms"] and row["measure"] == "drift/refusals"] == [
        "2030-01-09"
    ]


def test_drift_of_a_quiet_log_ends_well_and_a_short_one_says_so(tmp_path: Path) -> None:
    quiet = CliRunner().invoke(app, ["drift", str(write_log(tmp_path / "a.jsonl", [0.1] * 9))])
    assert (quiet.exit_code, "No alarm." in quiet.output) == (0, True)
    short = CliRunner().invoke(app, ["drift", str(write_log(tmp_path / "b.jsonl", [0.1] * 3))])
    assert (short.exit_code, "nothing is compared yet" in short.output) == (0, True)


def test_drift_without_a_log_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["drift", str(tmp_path / "gone.jsonl")])
    assert (done.exit_code, "must be a file that exists" in done.output) == (2, True)
