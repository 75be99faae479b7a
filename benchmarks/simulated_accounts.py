"""What the simulator accounts for: prompts that go in, rollouts that are trained on, its own CPU time."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from rlhf_ray.records import Prompt


class Stopwatch:
    """CPU seconds of the process in the simulated parts' own methods: ``with stopwatch: ...``, one at a time.

    A garbage collection that falls into one is left out: it is due to the records that the driver holds.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0
        self._collecting = 0.0

    def __enter__(self) -> None:
        self._begun = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._begun

    @contextmanager
    def watching_collections(self) -> Iterator[None]:
        gc.callbacks.append(self._collected)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collected)

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._collecting = time.process_time()
        else:
            self._begun += time.process_time() - self._collecting


class Prompts:
    """Numbered for ever."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.position = 0
        self._stopwatch = stopwatch
        self._ids = np.zeros(64, dtype=np.int32)

    def next_prompts(self, count: int) -> list[Prompt]:
        with self._stopwatch:
            begun, self.position = self.position, self.position + count
            return [Prompt(f"p{begun + place}", self._ids, place) for place in range(count)]

    def state(self) -> Mapping[str, object]:
        return {"position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


class AccountError(AssertionError):
    """A prompt was lost, or trained on twice."""


class Ledger:
    """Stands before the trainer: every prompt of the step, in its place, exactly once and never again."""

    def __init__(self, trainer: Any, stopwatch: Stopwatch, *, per_step: int) -> None:
        self._trainer = trainer
        self._stopwatch = stopwatch
        self._per_step = per_step
        self.counted = 0

    async def update(self, *, step: int, shards: Sequence[Any], **others: Any) -> Mapping[str, float]:
        with self._stopwatch:
            self._count(step, shards)
        metrics: Mapping[str, float] = await self._trainer.update(step=step, shards=shards, **others)
        return metrics

    def _count(self, step: int, shards: Sequence[Any]) -> None:
        found = {summary.order: summary.rollout_id for shard in shards for summary in shard.summaries}
        first = (step - 1) * self._per_step
        expected = {place: f"{step}/p{first + place}/0" for place in range(self._per_step)}
        count = sum(len(shard.summaries) for shard in shards)
        if found != expected or count != len(expected):
            strange = len(set(found.items()) ^ set(expected.items())) + count - len(found)
            raise AccountError(f"step {step}: {strange} rollouts are not those that were asked for")
        self.counted += count
