"""A run's state on disk: whole or absent, and never gone before the next one is there."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from rlhf_ray.checkpoint import Checkpoints
from rlhf_ray.config.ppo import PpoConfig
from tests.fakes import make_driver, run_driver

Write = Callable[[Path], Awaitable[None]]


def writer(content: bytes) -> Write:
    async def write(directory: Path) -> None:
        (directory / "trainer").mkdir()
        (directory / "trainer" / "rank_0.pt").write_bytes(content)
        (directory / "rng.bin").write_bytes(b"rng")

    return write


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


async def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "state")
    driver = {"steps_done": 3, "kl": 0.1 + 0.2}
    await checkpoints.save(3, driver, writer(b"weights"))
    saved, warnings = Checkpoints(tmp_path / "state").latest()
    assert saved is not None
    assert (saved.step, saved.driver, warnings) == (3, driver, [])
    assert (saved.directory / "trainer" / "rank_0.pt").read_bytes() == b"weights"


def test_a_run_that_never_saved_has_no_state_and_no_warning(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").latest() == (None, [])


async def test_a_crash_while_writing_leaves_the_state_before_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    await checkpoints.save(1, {}, writer(b"one"))

    async def crash(directory: Path) -> None:
        (directory / "trainer").mkdir()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        await checkpoints.save(2, {}, crash)
    saved, warnings = checkpoints.latest()
    assert saved is not None
    assert (saved.step, warnings) == (1, [])

    await checkpoints.save(3, {}, writer(b"three"))
    assert names(tmp_path) == ["step_00000001", "step_00000003"]  # what the crash left is gone


async def test_the_old_states_go_only_when_the_new_one_is_complete(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    await checkpoints.save(1, {}, writer(b"one"))
    seen: list[list[str]] = []

    async def look(directory: Path) -> None:
        (directory / "weights").write_bytes(b"two")
        seen.append(names(tmp_path))

    await checkpoints.save(2, {}, look)
    assert seen == [[".step_00000002", "step_00000001"]]
    assert names(tmp_path) == ["step_00000002"]


async def test_rotation_keeps_the_newest_states(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (8, 9, 10, 11):
        await checkpoints.save(step, {}, writer(b"x"))
    assert names(tmp_path) == ["step_00000010", "step_00000011"]


def break_size(directory: Path) -> str:
    (directory / "trainer" / "rank_0.pt").write_bytes(b"cut")
    return r"rank_0\.pt has 3 bytes, not 5"


def break_content(directory: Path) -> str:
    (directory / "trainer" / "rank_0.pt").write_bytes(b"twO  ")
    return r"rank_0\.pt does not hold what was saved: its checksum differs"


def remove_file(directory: Path) -> str:
    (directory / "rng.bin").unlink()
    return r"No such file .*rng\.bin"


def remove_record(directory: Path) -> str:
    (directory / "run.json").unlink()
    return r"No such file .*run\.json"


def break_record(directory: Path) -> str:
    (directory / "run.json").write_text('{"step": 2, "driver"')
    return "JSONDecodeError"


def empty_record(directory: Path) -> str:
    (directory / "run.json").write_text("[]")
    return "TypeError"


@pytest.mark.parametrize("damage", [break_size, break_content, remove_file, remove_record, break_record, empty_record])
async def test_a_damaged_state_is_skipped_with_a_warning(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    await checkpoints.save(1, {"steps_done": 1}, writer(b"one"))
    await checkpoints.save(2, {"steps_done": 2}, writer(b"two  "))
    reason = damage(tmp_path / "step_00000002")
    saved, warnings = checkpoints.latest()
    assert saved is not None
    assert saved.driver == {"steps_done": 1}
    with pytest.raises(AssertionError, match=f"step_00000002 is damaged .*{reason}"):
        raise AssertionError(*warnings)


async def test_a_damaged_state_does_not_take_the_place_of_a_whole_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (2, 4, 6):
        await checkpoints.save(step, {}, writer(b"weights"))
    break_size(tmp_path / "step_00000006")
    await checkpoints.save(5, {}, writer(b"weights"))  # resumed after 4
    assert names(tmp_path) == ["step_00000004", "step_00000005"]


async def test_the_same_step_may_be_saved_again_over_a_damaged_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    await checkpoints.save(1, {}, writer(b"one"))
    break_content(tmp_path / "step_00000001")
    await checkpoints.save(1, {}, writer(b"again"))
    saved, warnings = checkpoints.latest()
    assert saved is not None
    assert (saved.step, warnings) == (1, [])


def test_keeping_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep \(0\) must be at least 1"):
        Checkpoints(tmp_path, keep=0)


async def test_a_run_continues_from_its_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    config = PpoConfig(num_steps=4, rollouts_per_step=6, num_minibatches=1)
    whole = await run_driver(make_driver(config)[0])

    driver, _ = make_driver(PpoConfig(num_steps=2, rollouts_per_step=6, num_minibatches=1))
    before = await run_driver(driver)
    await Checkpoints(tmp_path).save(2, driver.state(), lambda d: driver.trainer.save_state(str(d), "trainer"))

    resumed, _ = make_driver(config)
    saved, _ = Checkpoints(tmp_path).latest()
    assert saved is not None
    resumed.restore(saved.driver)
    await resumed.trainer.load_state(str(saved.directory), "trainer")
    assert before + await run_driver(resumed) == whole
    assert json.loads((saved.directory / "run.json").read_text())["files"].keys() == {"trainer"}
