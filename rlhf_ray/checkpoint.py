"""The state of a run on disk: written aside, flushed, renamed, verified; older ones go only after that.

A state directory ``step_00000012`` holds whatever the trainer's ranks wrote and ``run.json``: the driver's state, the
step's metrics, and the size and checksum of every file. A directory without a ``run.json`` that matches is damaged; the
one before it is used.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_ray.directories import NotWholeError, begin, complete, read_manifest

STATE_FILE = "run.json"
Write = Callable[[Path], Awaitable[None]]


@dataclass(frozen=True)
class SavedState:
    """A complete state: where it lies, the step it was saved after, what the driver said and what was measured then."""

    directory: Path
    step: int
    driver: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """Which of several states is best: by a metric of their steps. A step that did not measure it is not."""

    metric: str
    highest: bool = True

    def of(self, states: Sequence[SavedState]) -> SavedState | None:
        """The best of them, the earlier one where two are equal; None where none was measured."""
        measured = [state for state in states if self.value(state.metrics) is not None]
        return max(measured, key=lambda state: (self._rank(state.metrics), -state.step), default=None)

    def is_best(self, metrics: Mapping[str, float], states: Sequence[SavedState]) -> bool:
        """Whether a step with these metrics beats all that are saved."""
        best = self.of(states)
        return self.value(metrics) is not None and (best is None or self._rank(metrics) > self._rank(best.metrics))

    def value(self, metrics: Mapping[str, float]) -> float | None:
        found = metrics.get(self.metric)
        return None if found is None or math.isnan(found) else found

    def _rank(self, metrics: Mapping[str, float]) -> float:
        value = self.value(metrics)
        assert value is not None
        return value if self.highest else -value


class Checkpoints:
    """The last ``keep`` states of one run, and the best."""

    def __init__(self, root: Path, keep: int = 2, best: Best | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep ({keep}) must be at least 1, or a run would have no state to go back to")
        self.root = root
        self.keep = keep
        self.best = best

    async def save(
        self, step: int, driver: Mapping[str, object], write: Write, metrics: Mapping[str, float] | None = None
    ) -> SavedState:
        """Let ``write(directory)`` write the trainer's part, then make the state complete and drop what is too old."""
        state = self.complete(await self.write_aside(step, write), step, driver, metrics or {})
        self.rotate()
        return state

    async def write_aside(self, step: int, write: Write) -> Path:
        """The first half of :meth:`save`: the trainer's part, in a directory that is no state yet."""
        for left_over in self.root.glob(".step_*"):
            shutil.rmtree(left_over)
        aside = begin(self._place(step))
        await write(aside)
        return aside

    def complete(
        self, aside: Path, step: int, driver: Mapping[str, object], metrics: Mapping[str, float]
    ) -> SavedState:
        """The second half of :meth:`save`, which may run in another thread: checksums, flushing, the name."""
        final = self._place(step)
        content = {"step": step, "driver": driver, "metrics": dict(metrics)}
        complete(aside, final, manifest=STATE_FILE, content=content)
        return SavedState(final, step, driver, metrics)

    def latest(self, at_most: int | None = None) -> tuple[SavedState | None, list[str]]:
        """The newest complete state, or None; and a warning for each newer one that is damaged.

        States after step ``at_most`` are passed over.
        """
        warnings: list[str] = []
        for directory in self._newest_first():
            problem, state = _read(directory, verify=True)
            if state is not None and (at_most is None or state.step <= at_most):
                return state, warnings
            if state is None:
                warnings.append(f"checkpoint {directory} is damaged ({problem}) and is not used")
        return None, warnings

    def states(self) -> list[SavedState]:
        """All states that look whole, the newest first; what their files hold is not read."""
        found = (_read(directory, verify=False)[1] for directory in self._newest_first())
        return [state for state in found if state is not None]

    def forget_after(self, step: int) -> None:
        """Remove the states of later steps: the run goes on from ``step`` and will come there again, or nowhere."""
        for directory in self._newest_first():
            if directory.name > self._place(step).name:
                shutil.rmtree(directory)

    def kept(self) -> list[Path]:
        """The newest ``keep`` whole states and the best, the newest first. Damaged ones do not count."""
        whole = self.states()
        kept = whole[: self.keep]
        if self.best is not None and (best := self.best.of(whole)) is not None and best not in kept:
            kept.append(best)
        return [state.directory for state in kept]

    def rotate(self) -> None:
        """Remove all but :meth:`kept`. Nobody may still want to go back to an older one."""
        for directory in set(self._newest_first()) - set(self.kept()):
            shutil.rmtree(directory)

    def _newest_first(self) -> list[Path]:
        return sorted(self.root.glob("step_*"), reverse=True)

    def _place(self, step: int) -> Path:
        return self.root / f"step_{step:08d}"


def read_state(directory: Path) -> SavedState:
    """The state in ``directory``, every file of it read and compared. Raises NotWholeError where it is damaged."""
    problem, state = _read(directory, verify=True)
    if state is None:
        raise NotWholeError(problem)
    return state


def _read(directory: Path, *, verify: bool) -> tuple[str, SavedState | None]:
    """The state in ``directory``, or what is wrong with it. ``verify`` reads every file; else sizes are compared."""
    try:
        _, content = read_manifest(directory, manifest=STATE_FILE, verify=verify)
        metrics = {name: float(value) for name, value in content.get("metrics", {}).items()}
        return "", SavedState(directory, int(content["step"]), content["driver"], metrics)
    except NotWholeError as error:
        return str(error), None
    except (ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}", None
