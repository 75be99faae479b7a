"""`rlhf-ray status` and `rlhf-ray scale`, on directories in which a run has said something."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.supervision.control import CONTROL_FILE, STATUS_FILE, write_whole

MEMBER = {"name": "generator 4", "state": "catching_up", "for_s": 2.5, "node": "10.0.0.7", "version": None, "load": 12}
FLEET = [
    {
        "role": "generator",
        "wanted": 3,
        "running_shards": 5,
        "waiting_shards": 6,
        "requeued_shards": 7,
        "restarts": 1,
        "members": [MEMBER],
    }
]


def run_in(directory: Path, *, age_s: float = 0.0, ended: str = "") -> str:
    said: dict[str, Any] = {"pid": 42, "host": "head", "phase": "ppo: generate", "step": 9, "fleet": FLEET}
    metrics = {"time/step": 3.25}
    write_whole(directory / STATUS_FILE, {**said, "metrics": metrics, "written": time.time() - age_s, "ended": ended})
    return str(directory)


def test_status_of_a_living_run_shows_phase_rates_queue_and_members(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["status", run_in(tmp_path)])
    assert done.exit_code == 0
    for shown in ("alive", "ppo: generate", "step 9", "time/step 3.25", "6 waiting", "generator 4", "catching_up"):
        assert shown in done.output


def test_status_of_a_silent_run_shows_its_last_state_with_its_age_and_fails(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["status", run_in(tmp_path, age_s=500.0), "--watch"])
    assert done.exit_code == 1
    said = " ".join(done.output.split())  # a terminal folds lines where it likes
    assert "not alive" in said
    assert "50" in said.split("it said", maxsplit=1)[1][:5]
    assert "generator 4" in done.output


def test_status_of_a_finished_run_succeeds(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["status", run_in(tmp_path, age_s=500.0, ended="finished")])
    assert done.exit_code == 0


def test_a_run_that_is_not_alive_cannot_be_scaled(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["scale", run_in(tmp_path, age_s=500.0), "--generators", "2"])
    assert done.exit_code == 2
    assert "is not alive" in done.output


def test_a_fleet_of_none_cannot_be_asked_for(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["scale", run_in(tmp_path), "--generators", "0"]).exit_code == 2
    assert CliRunner().invoke(app, ["scale", run_in(tmp_path)]).exit_code == 2


def test_every_role_is_asked_for_in_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.live.wait_until_followed", lambda *_, **__: None)
    run = run_in(tmp_path)
    sizes = ["--generators", "3", "--references", "2", "--reward-models", "4"]
    done = CliRunner().invoke(app, ["scale", run, *sizes])
    assert done.exit_code == 0
    assert "3 x generator, 2 x reference, 4 x reward_model" in " ".join(done.output.split())
    asked = json.loads((tmp_path / CONTROL_FILE).read_text())["wanted"]
    assert asked == {"generator": 3, "reference": 2, "reward_model": 4}
