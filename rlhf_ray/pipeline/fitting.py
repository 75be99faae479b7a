"""The loop that SFT, reward models and DPO share: batches in, optimizer steps, a log, a bar, states to resume at."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_ray.checkpoint import Checkpoints
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.metrics.progress import progress
from rlhf_ray.metrics.sinks import open_metric_log
from rlhf_ray.pipeline.context import Context, ResumableTrainer, quiet, warned
from rlhf_ray.pipeline.resuming import TRAINER
from rlhf_ray.saving import SaveSchedule
from rlhf_ray.state_saver import StateSaver
from rlhf_ray.stopping import Stop, StoppedError

Metrics: TypeAlias = Mapping[str, float]
FIT_STATE = "fit_state"  # below the directory that is logged in


async def take_steps(
    context: Context,
    trainer: ResumableTrainer,
    *,
    directory: Path,
    stage: str,
    title: str,
    num_steps: int,
    sampler: ResumableSampler,
    works_of: Callable[[Sequence[int]], Sequence[Any]],
    evaluated: Callable[[int], Awaitable[Metrics]],
    note: Callable[[Metrics], str],
    data: str = "",
) -> dict[str, float]:
    """Train for ``num_steps`` steps and log each under ``directory``; return the last value of every metric.

    ``works_of(batch)`` gives each rank its share of the items of a batch; ``evaluated(step)`` what is held out says
    after a step, 0 being before the first, and nothing where it is not asked then. ``data`` tells whether the items are
    those of a saved state, where the stage makes them itself. Raises StoppedError when told to stop with a state saved.
    """
    saving = FitStates(context, trainer, directory / FIT_STATE, num_steps=num_steps, data=data)
    done, last = await saving.resume(title)
    for _ in range(done):
        sampler.next_batch()
    with (
        open_metric_log(directory, quiet(context.config.logging), run_name=stage, resumed_step=done or None) as log,
        progress(title, num_steps, "step") as bar,
        saving.listens_to(context.stop),
    ):
        bar.advance(done)
        if not done and (before := await evaluated(0)):
            log.log(0, before)
        try:
            for step in range(done + 1, num_steps + 1):
                trained = await trainer.update(works_of(sampler.next_batch()))
                metrics = {**trained.means(), **await evaluated(step)}
                log.log(step, metrics)
                last |= metrics
                bar.advance()
                bar.note(note(last))
                context.board.note(step=step)
                await saving.after(step, last, title)
        finally:
            await saving.settle()
    return last


class FitStates:
    """The states of one fit, where ``checkpoints`` asks for any: saved beside its steps, and the way back."""

    def __init__(
        self, context: Context, trainer: ResumableTrainer, directory: Path, *, num_steps: int, data: str
    ) -> None:
        config = context.config.checkpoints
        self._trainer = trainer
        self._stop = context.stop
        self._num_steps = num_steps
        self._data = data
        self._saver = StateSaver(
            Checkpoints(directory, config.keep),
            SaveSchedule(config.fit_every, config.every_minutes, num_steps),
            mirror=None,
            warn=warned,
            on_saved=lambda state: trainer.checkpointed(str(state.directory), TRAINER, state.step),
        )

    async def resume(self, title: str) -> tuple[int, dict[str, float]]:
        """Bring the trainer to the last whole state: its step, 0 where there is none, and what was measured by then."""
        saved, warnings = self._saver.checkpoints.latest(self._num_steps)
        for warning in warnings:
            warned(warning)
        if saved is not None and saved.driver.get("data") != self._data:
            warned(f"{saved.directory} belongs to other training data, which is made anew; {title} begins anew")
            saved = None
        self._saver.checkpoints.forget_after(saved.step if saved else -1)
        if saved is None:
            return 0, {}
        await self._trainer.load_state(str(saved.directory), TRAINER)
        self._trainer.resumed(saved.step)
        self._saver.schedule.saved(saved.step)
        print(f"{title} resumes after step {saved.step} from {saved.directory}", flush=True)
        return saved.step, dict(saved.metrics)

    async def after(self, step: int, metrics: Metrics, title: str) -> None:
        """Save where that is due. Raises StoppedError where the run was told to stop, with the state saved."""

        async def write(directory: Path) -> None:
            await self._trainer.save_state(str(directory), TRAINER)

        stopping = self._stop.asked and self._saver.schedule.saves
        await self._saver.save_if_due(step, {"data": self._data}, write, metrics, stopping=stopping)
        if stopping and step < self._num_steps:
            await self.settle()
            newest = next(iter(self._saver.checkpoints.states()), None)
            kept = f"its state after step {newest.step} is saved" if newest else "no state is saved"
            raise StoppedError(f"{title} was told to stop and has, after {step} of {self._num_steps} steps; {kept}")

    async def settle(self) -> None:
        await self._saver.settle()

    @contextmanager
    def listens_to(self, stop: Stop) -> Iterator[None]:
        """Within the block a run that is told to stop has its grace period, where there is anything to save."""
        unheard = stop.listen(lambda: None) if self._saver.schedule.saves else lambda: None
        try:
            yield
        finally:
            unheard()


def forget_fit_states(directory: Path) -> None:
    """Let the states of a stage's fits go: it is done."""
    for states in directory.rglob(FIT_STATE):
        shutil.rmtree(states)
