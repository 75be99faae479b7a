"""A living run is reached through its directory; one that is not alive refuses."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.errors import ConfigError, RlhfError
from rlhf_ray.supervision.board import StatusBoard, told
from rlhf_ray.supervision.control import (
    ALIVE_WITHIN_S,
    CONTROL_FILE,
    STATUS_FILE,
    ControlDesk,
    NotAliveError,
    ask_for,
    read_status,
    require_alive,
    wait_until_followed,
    write_whole,
)


def says(directory: Path, *, written: float | None = None, **facts: Any) -> None:
    write_whole(directory / STATUS_FILE, {"written": time.time() if written is None else written, **facts})


def test_a_directory_without_a_status_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no status\.json"):
        read_status(tmp_path)


def test_a_silent_run_is_not_alive_and_its_last_state_is_known_with_its_age(tmp_path: Path) -> None:
    says(tmp_path, written=1000.0, phase="ppo: update")
    assert read_status(tmp_path, now=lambda: 1000.0 + ALIVE_WITHIN_S).is_alive
    late = read_status(tmp_path, now=lambda: 1100.0)
    assert (late.is_alive, late.age_s) == (False, 100.0)
    with pytest.raises(NotAliveError, match=r"100 s old, in phase ppo: update"):
        require_alive(tmp_path, now=lambda: 1100.0)


def test_a_run_that_has_ended_takes_no_requests(tmp_path: Path) -> None:
    says(tmp_path, ended="finished")
    with pytest.raises(NotAliveError, match="has ended: finished"):
        ask_for(tmp_path, {"generator": 2})
    assert not (tmp_path / CONTROL_FILE).exists()


def test_a_request_is_followed_once_and_answered(tmp_path: Path) -> None:
    says(tmp_path)
    sizes: list[tuple[str, int]] = []
    desk = ControlDesk(tmp_path, lambda role, count: sizes.append((role, count)))
    request = ask_for(tmp_path, {"generator": 3})
    desk.look()
    desk.look()
    assert sizes == [("generator", 3)]
    says(tmp_path, control=desk.answer)
    assert wait_until_followed(tmp_path, request, timeout_s=1).content["control"]["wanted"] == {"generator": 3}


def test_a_refusal_reaches_who_asked(tmp_path: Path) -> None:
    says(tmp_path)

    def refuse(role: str, count: int) -> None:
        raise ConfigError("generators", count, "cannot be had", "ask for fewer")

    desk = ControlDesk(tmp_path, refuse)
    request = ask_for(tmp_path, {"generator": 3})
    desk.look()
    says(tmp_path, control=desk.answer)
    with pytest.raises(RlhfError, match="the run refuses: generators"):
        wait_until_followed(tmp_path, request, timeout_s=1)


def test_what_an_earlier_run_was_asked_for_is_not_followed(tmp_path: Path) -> None:
    write_whole(tmp_path / CONTROL_FILE, {"request": "old", "wanted": {"generator": 9}})
    sizes: list[int] = []
    ControlDesk(tmp_path, lambda role, count: sizes.append(count)).look()
    assert sizes == []


def test_who_is_not_answered_hears_of_it(tmp_path: Path) -> None:
    says(tmp_path)
    with pytest.raises(NotAliveError, match="has not followed"):
        wait_until_followed(tmp_path, "request", timeout_s=0.0)


async def test_a_run_tells_its_status_and_in_the_end_how_it_ended(tmp_path: Path) -> None:
    board = StatusBoard()
    sizes: list[int] = []
    async with told(tmp_path, board, fleet=lambda: [{"role": "generator"}], resize=lambda r, c: sizes.append(c)):
        board.note(phase="ppo: generate")
        board.step(4, {"time/step": 2.0, "ppo/entropy": 1.0})
        while not (tmp_path / STATUS_FILE).exists():
            await asyncio.sleep(0.01)
        await asyncio.to_thread(
            lambda: wait_until_followed(tmp_path, ask_for(tmp_path, {"generator": 5}), timeout_s=20)
        )
    assert sizes == [5]
    said = json.loads((tmp_path / STATUS_FILE).read_text())
    assert (said["ended"], said["phase"], said["step"]) == ("finished", "ppo: generate", 4)
    assert (said["metrics"], said["fleet"]) == ({"time/step": 2.0}, [{"role": "generator"}])


async def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    async def fail() -> None:
        async with told(tmp_path, StatusBoard(), fleet=list, resize=lambda r, c: None):
            raise RlhfError("the disk is full\nmore")

    with pytest.raises(RlhfError):
        await fail()
    assert read_status(tmp_path).content["ended"] == "RlhfError: the disk is full"
