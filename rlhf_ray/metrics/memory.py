"""Peak memory of a run: this process and everything it started, shared pages counted once."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Samples the proportional set size (PSS) of the process tree every ``interval_s`` seconds, in a thread.

    PSS divides a shared page among the processes that map it, so that the sum is what the machine really holds. Actors
    on other machines of a cluster are not seen.
    """

    def __init__(self, interval_s: float = 3.0) -> None:
        self.peak_bytes = 0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> int:
        """Bytes held now."""
        own = psutil.Process()
        return sum(_held_by(process) for process in (own, *own.children(recursive=True)))

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self.sample())
            if self._stop.wait(self._interval_s):
                return


def _held_by(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
        return 0
