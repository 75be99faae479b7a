"""Progress of anything that takes longer than a few seconds: a bar on a terminal, plain lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

MIN_LINE_SECONDS = 10.0  # never more often than this
MAX_LINE_SECONDS = 60.0  # nor more seldom, so that a file shows that the work goes on
LINE_FRACTION = 0.1  # in between: when this much more is done


class ProgressReport(Protocol):
    """What the work tells about itself."""

    def advance(self, count: int = 1) -> None:
        """Say that ``count`` more units are done."""
        ...

    def note(self, text: str) -> None:
        """Show ``text`` beside the progress: what is being done now, or the latest number."""
        ...


@contextmanager
def progress(description: str, total: int, unit: str, stream: TextIO | None = None) -> Iterator[ProgressReport]:
    """Show the progress of ``total`` units of work; 0 where the total is unknown. Default stream: standard output.

    ``unit`` names what is counted, ``step`` or ``steps``.

    On a terminal this is a bar with rate and time left. Anywhere else it is plain lines: one when the work starts, one
    every 10 to 60 seconds (sooner where a further 10% are done), and one when it ends, which says so if it failed.
    """
    stream = stream or sys.stdout
    unit = f"{unit.removesuffix('s')}s"
    if stream.isatty():
        with _bar(stream, unit) as bar:
            yield _Bar(bar, bar.add_task(description, total=total or None, note=""))
        return
    lines = PlainProgress(description, total, unit, stream)
    try:
        yield lines
    except BaseException:
        lines.end("stopped")
        raise
    lines.end("done")


def format_duration(seconds: float) -> str:
    """Return 0:07, 12:40 or 3:05:09."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def format_rate(count: float, seconds: float, unit: str) -> str:
    """Return ``3.2 prompts/s``, or ``41 s per step`` where less than one is done in a second; empty for no work."""
    if count <= 0 or seconds <= 0:
        return ""
    rate = count / seconds
    if rate < 1:
        return f"{1 / rate:.3g} s per {unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.1f} {unit}/s"


# ---------------------------------------------------------------------------------------------------------------- lines
class PlainProgress:
    """Lines for a file: ``generate  120/400 prompts (30%)  3.2 prompts/s  1:27 left  kl 2.1``."""

    def __init__(
        self, description: str, total: int, unit: str, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._description, self._total, self._unit, self._stream = description, total, unit, stream
        self._clock = clock
        self._note = ""
        self._done = self._done_at_line = 0
        self._started = self._line_at = clock()
        self._print(f"{description}  {total:,} {unit}" if total else description)

    def advance(self, count: int = 1) -> None:
        self._done += count
        if self._done != self._total and self._is_line_due():  # the line for the last unit is that of the end
            self._line_at, self._done_at_line = self._clock(), self._done
            self._print(self._line())

    def note(self, text: str) -> None:
        self._note = text

    def end(self, outcome: str) -> None:
        elapsed = self._clock() - self._started
        done = f"{self._done:,} {self._unit}" if self._done == self._total else f"{self._count()} {self._unit}"
        parts = [self._description, outcome, done, f"in {format_duration(elapsed)}"]
        self._print("  ".join(part for part in (*parts, self._rate(elapsed), self._note) if part))

    def _is_line_due(self) -> bool:
        since_line = self._clock() - self._line_at
        enough = self._done - self._done_at_line >= LINE_FRACTION * self._total
        return since_line >= MAX_LINE_SECONDS or (since_line >= MIN_LINE_SECONDS and enough)

    def _line(self) -> str:
        elapsed = self._clock() - self._started
        left = elapsed / self._done * (self._total - self._done) if self._done and self._total else 0.0
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        remaining = f"{format_duration(left)} left" if left > 0 else ""
        parts = [self._description, f"{self._count()} {self._unit}{share}", self._rate(elapsed), remaining, self._note]
        return "  ".join(part for part in parts if part)

    def _count(self) -> str:
        return f"{self._done:,}/{self._total:,}" if self._total else f"{self._done:,}"

    def _rate(self, elapsed: float) -> str:
        return format_rate(self._done, elapsed, self._unit)

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


# ------------------------------------------------------------------------------------------------------------------ bar
class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def advance(self, count: int = 1) -> None:
        self._bar.advance(self._task, count)

    def note(self, text: str) -> None:
        self._bar.update(self._task, note=text)


class _CountColumn(ProgressColumn):
    """120/400 prompts"""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        total = f"/{task.total:,.0f}" if task.total is not None else ""
        return Text(f"{task.completed:,.0f}{total} {self._unit}")


class _RateColumn(ProgressColumn):
    """3.2 prompts/s  1:27 left"""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        elapsed = (task.finished_time if task.finished else task.elapsed) or 0.0
        left = task.time_remaining
        is_known = left is not None and not task.finished
        span = f"{format_duration(left)} left" if is_known and left is not None else f"in {format_duration(elapsed)}"
        return Text(f"{format_rate(task.completed, elapsed, self._unit)}  {span}".strip(), style="cyan")


def _bar(stream: TextIO, unit: str) -> Progress:
    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        _CountColumn(unit),
        _RateColumn(unit),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=Console(file=stream),
    )
