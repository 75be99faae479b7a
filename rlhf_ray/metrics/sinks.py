"""Where metrics are written: console, metrics.jsonl, TensorBoard, wandb. One class a sink; one log feeds them all."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, TextIO

from rlhf_ray.config.logging import LoggingConfig
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.registry import describe, require_registered

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id"


class MetricSink(Protocol):
    """One place that metrics are written to."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricLog:
    """Writes a step's metrics to every sink. Use as a context manager, so that the sinks are closed.

    ``directory`` is the stage's directory, which holds whatever the sinks write; it is created.
    """

    def __init__(self, directory: Path, sinks: Sequence[MetricSink]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._sinks = tuple(sinks)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write ``metrics`` of ``step``.

        Raises:
            UnknownMetricError: a name has no definition in the registry; nothing is written then.
        """
        require_registered(metrics)
        values = {name: float(value) for name, value in metrics.items()}
        for sink in self._sinks:
            sink.write(step, values)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_metric_log(
    directory: Path, config: LoggingConfig, *, run_name: str, num_steps: int = 0, resumed_step: int | None = None
) -> MetricLog:
    """Return the log that ``config`` asks for.

    ``resumed_step`` is the last step that the restored checkpoint contains: what was logged beyond it is forgotten, for
    it will be logged again. None is a fresh run, which starts its files over. ``num_steps`` is for display, 0 unknown.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sinks: list[MetricSink] = []
    if config.console:
        sinks.append(ConsoleSink(run_name, num_steps))
    if config.jsonl:
        sinks.append(JsonlSink(directory / METRICS_FILE, resumed_step))
    if config.tensorboard:
        sinks.append(TensorBoardSink(directory / "tensorboard", resumed_step))
    if config.wandb != "off":
        sinks.append(WandbSink(directory, config.wandb_project, run_name, config.wandb, resumed_step))
    return MetricLog(directory, sinks)


# -------------------------------------------------------------------------------------------------------------- console
class ConsoleSink:
    """One plain line a step, of the metrics that have a short label; all of them where none has."""

    def __init__(self, run_name: str = "", num_steps: int = 0, stream: TextIO | None = None) -> None:
        self._run_name = run_name
        self._num_steps = num_steps
        self._stream = stream

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        # sys.stdout is looked up now: a progress bar replaces it while it is on the screen.
        print(self.line(step, metrics), file=self._stream or sys.stdout, flush=True)

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        """Return the line: ``ppo step  12/200  score 0.412  kl 3.1  len 41.2``."""
        labels = {name: describe(name).short for name in metrics}
        shown = [(label, metrics[name]) for name, label in labels.items() if label] or list(metrics.items())
        place = f"{step:>{len(str(self._num_steps))}}/{self._num_steps}" if self._num_steps else f"{step:>5}"
        parts = [f"{label} {format_number(value)}" for label, value in shown]
        return "  ".join([f"{self._run_name} step {place}".lstrip(), *parts])

    def close(self) -> None:
        """Nothing to close: the stream belongs to the process."""


def format_number(value: float) -> str:
    """Return ``value`` with four significant digits and no needless exponent: 0.4121, 12.3, 1.234e-05, 48,210."""
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.3g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(size)))}f}"


# ---------------------------------------------------------------------------------------------------------------- jsonl
@dataclass(frozen=True)
class MetricRow:
    """One line of metrics.jsonl. ``logged_at`` is in seconds since the epoch."""

    step: int
    logged_at: float
    metrics: Mapping[str, float]


class JsonlSink:
    """One flat JSON object a line: step, logged_at, then the metrics. Flushed per line, so that it can be followed.

    NaN and infinities, for which JSON has no number, are written as the strings "nan", "inf" and "-inf".
    """

    def __init__(self, path: Path, resumed_step: int | None = None) -> None:
        if resumed_step is None:
            path.write_text("", encoding="utf-8")
        else:
            _truncate_after(path, resumed_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        numbers = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "logged_at": round(time.time(), 3), **numbers}, allow_nan=False)
        self._file.write(line + "\n")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())  # a state that is saved next must not outlive its row
        except OSError as error:  # what could not be written waits in the buffer for the next row
            print(f"warning: {self._file.name} cannot be written ({error.strerror}); its rows wait", flush=True)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> tuple[MetricRow, ...]:
    """Return the rows of a metrics.jsonl, in order; none if there is no such file.

    A last line without its end, left by a killed run, is passed over.

    Raises:
        DataError: a complete line is not a row; the message holds the file and the line.
    """
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return tuple(parse_row(path, number, line) for number, line in enumerate(lines, start=1))


def parse_row(path: Path, number: int, line: str) -> MetricRow:
    """Return the row that line ``number`` of ``path`` holds. Raises DataError where it is none."""
    try:
        fields = json.loads(line)
        step, logged_at = int(fields.pop("step")), float(fields.pop("logged_at"))
        return MetricRow(step, logged_at, {name: float(value) for name, value in fields.items()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path}:{number} is not a row of metrics ({error}); delete the line to go on") from error


def _truncate_after(path: Path, resumed_step: int) -> None:
    """Drop the rows beyond ``resumed_step`` and a torn last line. The file is replaced whole, never half."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    kept = [line for number, line in enumerate(lines, start=1) if parse_row(path, number, line).step <= resumed_step]
    aside = path.with_suffix(".jsonl.tmp")
    aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(aside, path)


# --------------------------------------------------------------------------------------------------- TensorBoard, wandb
class TensorBoardSink:
    """Scalars for TensorBoard, under the metrics' own names. A resumed run hides the steps that it does again."""

    def __init__(self, directory: Path, resumed_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and most runs do not ask for it

        purge_step = None if resumed_step is None else resumed_step + 1
        self._writer: Any = SummaryWriter(log_dir=str(directory), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A wandb run whose files lie in the stage's directory. Offline sends nothing; `wandb sync` sends it later.

    A resumed run keeps its id, and its steps are an axis of their own, so that a step done again is accepted.
    """

    def __init__(
        self,
        directory: Path,
        project: str,
        run_name: str,
        mode: Literal["offline", "online"],
        resumed_step: int | None = None,
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # crash reports are not for others either
        import wandb

        self._run: Any = wandb.init(
            project=project,
            name=run_name or None,
            dir=str(directory),
            mode=mode,
            id=_wandb_id(directory / WANDB_ID_FILE, resumed_step),
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


def _wandb_id(path: Path, resumed_step: int | None) -> str:
    """Return the run's id: the one on file for a resumed run, else a new one, which is filed."""
    if resumed_step is not None and path.exists():
        return path.read_text(encoding="utf-8").strip()
    run_id = os.urandom(5).hex()
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id
