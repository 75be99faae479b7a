"""What a run says of itself while it runs: its phase and last numbers, and its fleet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.supervision.control import STATUS_FILE, WRITE_EVERY_S, ControlDesk, write_whole

SHOWN_METRICS = ("ppo/policy_version", "ppo/score_mean", "ppo/staleness", "time/step", "time/tokens_per_second")
LOOK_EVERY_S = 0.5


class StatusBoard:
    """Noted by whoever knows, read by whoever writes the status file."""

    def __init__(self) -> None:
        self._noted: dict[str, Any] = {"phase": "starting"}

    def note(self, **facts: Any) -> None:
        self._noted.update(facts)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """What the last step was like."""
        self.note(step=step, metrics={name: metrics[name] for name in SHOWN_METRICS if name in metrics})

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self._noted)


@contextlib.asynccontextmanager
async def told(
    directory: Path, board: StatusBoard, *, fleet: Callable[[], list[Any]], resize: Callable[[str, int], None]
) -> AsyncIterator[None]:
    """Inside the block the run writes its status, and follows what it is asked for."""
    desk = ControlDesk(directory, resize)

    def content(ended: str = "") -> dict[str, Any]:
        process = {"pid": os.getpid(), "host": socket.gethostname()}
        said = {"written": time.time(), "ended": ended, "control": desk.answer, "fleet": fleet()}
        return {**process, **board.facts, **said}

    async def keep_telling() -> None:
        written = 0.0
        while True:
            before = desk.answer
            desk.look()
            if desk.answer is not before or time.monotonic() - written >= WRITE_EVERY_S:
                with contextlib.suppress(OSError):  # a full disk must not end the run; the status grows old instead
                    write_whole(directory / STATUS_FILE, content())
                written = time.monotonic()
            await asyncio.sleep(LOOK_EVERY_S)

    task = asyncio.create_task(keep_telling())
    ended = "finished"
    try:
        yield
    except BaseException as error:
        ended = f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0]
        raise
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(OSError):
            write_whole(directory / STATUS_FILE, content(ended))
