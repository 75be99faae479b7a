"""When a state is saved, and what a disk that fails changes: nothing but a warning and another try."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rlhf_ray.checkpoint import Best, Checkpoints
from rlhf_ray.errors import StorageError
from rlhf_ray.mirror import Mirror
from rlhf_ray.saving import SaveSchedule
from rlhf_ray.state_saver import StateSaver


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def reasons(schedule: SaveSchedule, steps: range) -> list[str]:
    """Why each step is saved; every save succeeds."""
    found = []
    for step in steps:
        found.append(schedule.due(step))
        if found[-1]:
            schedule.saved(step)
    return found


def test_states_are_saved_every_so_many_steps_and_at_the_end() -> None:
    assert reasons(SaveSchedule(every_steps=2, num_steps=5), range(1, 6)) == ["", "steps", "", "steps", "end"]


def test_minutes_count_from_the_last_save() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_minutes=10, num_steps=100, clock=clock)
    clock.now = 599.0
    assert schedule.due(1) == ""
    clock.now = 600.0
    assert schedule.due(2) == "minutes"
    schedule.saved(2)
    clock.now = 1199.0
    assert schedule.due(3) == ""
    clock.now = 1200.0
    assert schedule.due(4) == "minutes"


def test_the_best_step_and_a_stop_are_saved_whatever_the_schedule_says() -> None:
    schedule = SaveSchedule(every_steps=100, num_steps=1000)
    assert schedule.due(3, is_best=True) == "best"
    assert schedule.due(3, stopping=True) == "stop"


def test_a_run_that_saves_nothing_saves_nothing_at_all() -> None:
    schedule = SaveSchedule(num_steps=2)
    assert schedule.due(2) == schedule.due(1, stopping=True) == schedule.due(1, is_best=True) == ""


def test_a_step_is_saved_once() -> None:
    schedule = SaveSchedule(every_steps=2, num_steps=10)
    schedule.saved(4)
    assert schedule.due(4, stopping=True) == ""


def test_a_failure_is_tried_again_at_every_step_until_it_succeeds() -> None:
    schedule = SaveSchedule(every_steps=10, num_steps=100)
    assert schedule.due(10) == "steps"
    schedule.saved(10)  # the first half; the second fails
    assert schedule.failed(10) == 1
    assert schedule.due(11) == "again"
    assert schedule.failed(11) == 2
    assert schedule.due(12) == "again"
    schedule.saved(12)
    assert schedule.due(13) == ""


# ------------------------------------------------------------------------------------------------------------ the saver
class Disk:
    """A trainer's part of a state, and a disk that may be full."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checkpoints = Checkpoints(root / "state")
        self.schedule = SaveSchedule(every_steps=1, num_steps=100)
        self.said: list[str] = []
        self.full: Exception | None = None
        self.full_later = False
        self.saver = StateSaver(self.checkpoints, self.schedule, mirror=None, warn=self.said.append)
        self._complete = self.checkpoints.complete
        monkeypatch.setattr(self.checkpoints, "complete", self.complete)

    async def write(self, directory: Path) -> None:
        if self.full is not None:
            raise self.full
        (directory / "weights").write_bytes(b"weights")

    def complete(self, *arguments: object) -> object:
        if self.full_later:
            raise OSError(28, "No space left on device")
        return self._complete(*arguments)  # type: ignore[arg-type]

    async def step(self, step: int, metrics: Mapping[str, float] | None = None) -> bool:
        return await self.saver.save_if_due(step, {"steps_done": step}, self.write, metrics or {})

    @property
    def steps(self) -> list[int]:
        return [state.step for state in self.checkpoints.states()]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StorageError("rank 0: read-only")])
async def test_a_trainer_that_cannot_write_keeps_the_old_state_and_tries_at_the_next_step(
    disk: Disk, error: Exception
) -> None:
    await disk.step(1)
    disk.full = error
    assert not await disk.step(2)
    assert not await disk.step(3)
    assert disk.steps == [1]
    assert "STATE AFTER STEP 3 COULD NOT BE SAVED" in disk.said[1]
    assert "2 in a row; that of step 1 stays, training goes on" in disk.said[1]
    disk.full = None
    assert await disk.step(4)
    await disk.saver.settle()
    assert disk.steps == [4, 1]


async def test_a_disk_that_fills_up_in_the_second_half_is_tried_again_too(disk: Disk) -> None:
    disk.schedule.every_steps = 10
    await disk.step(10)
    await disk.saver.settle()
    disk.full_later = True
    assert await disk.step(20)
    await disk.saver.settle()
    assert disk.steps == [10]
    assert "No space left on device" in disk.said[0]
    disk.full_later = False
    assert await disk.step(21)
    await disk.saver.settle()
    assert disk.steps == [21, 10]


async def test_the_second_half_is_done_beside_training_and_one_at_a_time(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    gate, begun = threading.Event(), []
    complete = disk.checkpoints.complete

    def waiting(*arguments: object) -> object:
        begun.append(arguments[1])
        assert gate.wait(10)
        return complete(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(disk.checkpoints, "complete", waiting)
    assert await disk.step(1)
    assert disk.steps == []  # the step that follows has begun, and the state is still on its way
    gate.set()
    assert await disk.step(2)
    await disk.saver.settle()
    assert begun == [1, 2]
    assert disk.steps == [2, 1]
    assert disk.saver.waited().keys() == {"time/save"}
    assert disk.saver.waited() == {}


async def test_a_state_goes_only_when_the_trainer_has_heard_of_the_next(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "state", keep=1)
    seen: list[list[int]] = []
    saver = StateSaver(
        checkpoints,
        SaveSchedule(every_steps=1, num_steps=100),
        mirror=None,
        warn=print,
        on_saved=lambda state: seen.append([each.step for each in checkpoints.states()]),
    )

    async def write(directory: Path) -> None:
        (directory / "weights").write_bytes(b"weights")

    for step in (1, 2, 3):
        await saver.save_if_due(step, {}, write, {})
    await saver.settle()
    assert seen == [[1], [2, 1], [3, 2]]
    assert [state.step for state in checkpoints.states()] == [3]


# ------------------------------------------------------------------------------------------------------- what is kept
SCORES = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2, 5: 0.9}


@pytest.mark.parametrize(("highest", "kept"), [(True, [5, 4, 2]), (False, [5, 4, 1])])
async def test_the_best_state_is_kept_beside_the_newest(tmp_path: Path, highest: bool, kept: list[int]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, best=Best("gold/heldout_mean", highest))

    async def write(directory: Path) -> None:
        (directory / "weights").write_bytes(b"weights")

    for step, score in SCORES.items():
        await checkpoints.save(step, {}, write, {"gold/heldout_mean": score})
    await checkpoints.save(6, {}, write, {"gold/heldout_mean": float("nan")})
    await checkpoints.save(7, {}, write)
    assert [state.step for state in checkpoints.states()] == [7, 6, kept[2]]
    checkpoints.forget_after(6)
    assert [state.step for state in checkpoints.states()] == [6, kept[2]]
    best = checkpoints.best
    assert best is not None
    assert best.is_best({"gold/heldout_mean": 1.0}, checkpoints.states()) == highest
    assert not best.is_best({}, checkpoints.states())


# ---------------------------------------------------------------------------------------------------------- the mirror
@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/run" if request.param == "memory" else f"file://{tmp_path}/mirror/run"


async def saved_to(url: str, root: Path, steps: range) -> Checkpoints:
    """States of these steps below ``root``, each copied when it was complete."""
    said: list[str] = []
    checkpoints = Checkpoints(root)
    saver = StateSaver(checkpoints, SaveSchedule(every_steps=1), mirror=Mirror(url), warn=said.append)
    for step in steps:

        async def write(directory: Path, step: int = step) -> None:
            (directory / "policy").mkdir()
            (directory / "policy" / "rank_0").write_bytes(b"weights of %d" % step)

        await saver.save_if_due(step, {"steps_done": step}, write, {})
    await saver.settle()
    assert said == []
    return checkpoints


async def test_a_state_comes_back_from_the_mirror_as_it_was(url: str, tmp_path: Path) -> None:
    await saved_to(url, tmp_path / "state", range(1, 5))
    mirror = Mirror(url)
    assert mirror.names() == ["step_00000004", "step_00000003"]  # what is rotated here goes there too
    back, warnings = mirror.fetch_newest(tmp_path / "elsewhere")
    assert warnings == []
    assert back is not None
    assert (back.step, back.driver) == (4, {"steps_done": 4})
    assert (back.directory / "policy" / "rank_0").read_bytes() == b"weights of 4"
    assert Checkpoints(tmp_path / "elsewhere").latest()[0] == back


async def test_a_damaged_copy_is_passed_over_for_the_one_before(url: str, tmp_path: Path) -> None:
    await saved_to(url, tmp_path / "state", range(1, 3))
    mirror = Mirror(url)
    mirror._files.pipe_file(f"{mirror._root}/step_00000002/policy/rank_0", b"weights of 9")
    back, warnings = mirror.fetch_newest(tmp_path / "elsewhere")
    assert back is not None
    assert back.step == 1
    assert len(warnings) == 1
    assert "step_00000002 is damaged (rank_0 does not hold what was saved" in warnings[0]


async def test_a_copy_without_its_manifest_is_not_there(url: str, tmp_path: Path) -> None:
    await saved_to(url, tmp_path / "state", range(1, 3))
    mirror = Mirror(url)
    mirror._files.rm(f"{mirror._root}/step_00000002/run.json")
    assert mirror.names() == ["step_00000001"]


async def test_a_mirror_that_fails_costs_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror, said = Mirror(f"memory://{tmp_path.name}/failing"), []  # type: tuple[Mirror, list[str]]

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("403")

    monkeypatch.setattr(mirror, "upload", refuse)
    checkpoints = Checkpoints(tmp_path / "state")
    saver = StateSaver(checkpoints, SaveSchedule(every_steps=1), mirror=mirror, warn=said.append)

    async def write(directory: Path) -> None:
        (directory / "weights").write_bytes(b"weights")

    await saver.save_if_due(1, {}, write, {})
    await saver.settle()
    assert [state.step for state in checkpoints.states()] == [1]
    assert "could not be copied to memory://" in said[0]
