"""What surrounds PPO's loop: resume, saved states, held-out evaluation (step 0 is before), logging, an end in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rlhf_ray.checkpoint import Best, Checkpoints
from rlhf_ray.collecting import Collected
from rlhf_ray.config.checkpoints import CheckpointConfig
from rlhf_ray.driver import Driver, Roles
from rlhf_ray.garbage import rare_collections
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.metrics.progress import progress
from rlhf_ray.metrics.sinks import MetricLog, open_metric_log
from rlhf_ray.mirror import Mirror
from rlhf_ray.pipeline.accounting import StepLedger, counted_by, device_of, step_work
from rlhf_ray.pipeline.ahead import BATCHES, batches_to_json, read_batches
from rlhf_ray.pipeline.context import Context, Scope, quiet, warned
from rlhf_ray.pipeline.evaluation import HeldOut, heldout_metrics
from rlhf_ray.pipeline.phases import PhaseTrace
from rlhf_ray.pipeline.resuming import (
    ALARMS,
    RUN,
    START,
    TRAINER,
    fetch_from_mirror,
    restore_last,
    restore_logged,
    write_state,
)
from rlhf_ray.pipeline.sft import start_path
from rlhf_ray.pipeline.watching import Watch
from rlhf_ray.planning.achieved import rates_of
from rlhf_ray.roles import PpoTrainer
from rlhf_ray.saving import SaveSchedule
from rlhf_ray.state_saver import StateSaver
from rlhf_ray.stopping import StoppedError

NEED_A_STATE = ("save", "pause", "stop_keep_best")  # actions of alarms
TRAINER_IS_IDLE = ("generate", "score")  # phases in which its weights are those after the step before
RESERVE = 0.25  # of the grace period, for saving, until a save has shown what it takes


class EndedByAlarmError(Exception):
    """An alarm has ended the run: it is done, and keeps its best state."""


class PpoRun:
    """One PPO stage from its last state, or its beginning, to its last step."""

    def __init__(self, context: Context, driver: Driver, roles: Roles, scope: Scope) -> None:
        ppo = context.config.ppo
        self._config = ppo
        self._driver = driver
        self._roles = roles
        self._scope = scope
        self._stop = context.stop
        self._board = context.board
        self._ledger = StepLedger(context.ledger, device_of(context))
        self._directory = context.directory("ppo")
        self._logging = quiet(context.config.logging)
        self._run = context.store.base_key("ppo")
        self._start = str(start_path(context))
        self._saver = make_saver(context, roles.trainer)
        self._mirror = make_mirror(context.config.checkpoints)
        self._trace = PhaseTrace(self._directory)
        self._heldout = (
            HeldOut.of(context, ppo.eval_prompts, ppo.max_response_tokens, ppo.temperature, samples=ppo.eval_responses)
            if ppo.eval_every
            else None
        )
        self._watch = Watch.of(context, self._heldout)
        self._phase = ""
        self._last: Mapping[str, float] = {}
        self._ahead: tuple[Collected, ...] = ()  # batches that were there then
        self._boundary = self._state()  # of driver and alarms after the last whole step
        driver.on_phase = self._begin
        driver.count_work = counted_by(step_work(context))
        self._rates = partial(rates_of, config=context.config, device=context.accelerator)

    async def train(self) -> Mapping[str, float]:
        """Run the driver to its last step, or to the one at which an alarm ends it; return that step's metrics.

        Raises StoppedError when told to stop.
        """
        resumed = await self._resume()
        self._watch.begin(resumed)
        with (
            open_metric_log(self._directory, self._logging, run_name="ppo", resumed_step=resumed) as log,
            progress("PPO", self._config.num_steps, "step") as bar,
            rare_collections(),
        ):
            bar.advance(self._driver.steps_done)
            self._trace.begin(self._driver.steps_done, "start")

            async def after_step(step: int, metrics: Mapping[str, float]) -> None:
                await self._finish_step(step, metrics, log)
                bar.advance()
                bar.note(_headline(self._last))
                if self._stop.asked and step < self._config.num_steps:
                    await self._saver.settle()
                    raise self._stopped()

            try:
                await self._begin_with(resumed, log)
                await self._in_time(asyncio.create_task(self._driver.run(after_step)))
            except EndedByAlarmError:
                print(f"PPO is ended by an alarm after step {self._driver.steps_done}", flush=True)
            finally:
                await self._saver.settle()
        return self._last

    @property
    def num_alarms(self) -> int:
        return self._watch.count

    async def take_best(self) -> int | None:
        """After an alarm's end: give the trainer the weights of the best state, by ``checkpoints.best_metric``.

        The step of that state; None where no alarm has ended the run, or no saved state was ever measured.
        """
        checkpoints = self._saver.checkpoints
        best = checkpoints.best.of(checkpoints.states()) if self._watch.stopped and checkpoints.best else None
        if best is None:
            return None
        await self._roles.trainer.load_state(str(best.directory), TRAINER)
        print(f"PPO keeps its state after step {best.step}, the best", flush=True)
        return best.step

    # ---------------------------------------------------------------------------------------------------------- state
    async def _begin_with(self, resumed: int | None, log: MetricLog) -> None:
        """Where the curves start, the engines still holding the SFT model; or what the run waited for when it ended."""
        if resumed is None and (before := await self._evaluated(0)):
            log.log(0, before)
            self._watch.heed(0, before, self._driver)
        await self._wait_or_end(self._driver.steps_done)

    async def _wait_or_end(self, step: int) -> None:
        """Do what alarms have asked for that comes after the state is saved. Raises EndedByAlarmError."""
        if self._watch.waiting and not self._watch.stopped:
            self._begin(step, "paused by an alarm")
            await self._saver.settle()
            await self._watch.answered(step, lambda: self._stop.asked)
            self._boundary = self._state()
        if self._watch.stopped:
            raise EndedByAlarmError

    def _state(self) -> dict[str, object]:
        kept = self._driver.lookahead.kept()
        self._ahead = kept.batches
        return {**self._driver.state(kept), ALARMS: self._watch.state(), BATCHES: batches_to_json(kept.batches)}

    async def _resume(self) -> int | None:
        if self._mirror is not None:
            fetch_from_mirror(self._mirror, self._saver.checkpoints, self._run, warned)
        saved = await restore_last(
            self._saver.checkpoints, self._driver, self._roles.trainer, at_most=self._config.num_steps, warn=warned
        )
        if saved is None:
            self._saver.checkpoints.forget_after(0)
            return None
        self._driver.lookahead.restore(await read_batches(saved, self._scope.put))
        print(f"PPO resumes after step {saved.step} from {saved.directory}", flush=True)
        restore_logged(saved, self._directory)
        self._saver.schedule.saved(saved.step)
        self._watch.restore(saved.driver.get(ALARMS, {}))
        self._last, self._boundary = saved.metrics, self._state()
        return saved.step

    async def _finish_step(self, step: int, metrics: Mapping[str, float], log: MetricLog) -> None:
        """Log before saving: a state is never newer than the log beside it."""
        self._ledger.ends(metrics, self._driver.tokens_lost)
        metrics = {**metrics, **self._rates(metrics)}
        self._last = {**metrics, **await self._evaluated(step), **self._saver.waited()}
        actions = self._watch.heed(step, self._last, self._driver)
        self._boundary = self._state()
        log.log(step, self._last)
        self._board.step(step, self._last)
        await self._save(step, stopping=self._stop.asked or not actions.isdisjoint(NEED_A_STATE))
        await self._wait_or_end(step)

    async def _save(self, step: int, *, stopping: bool = False) -> None:
        async def write(directory: Path) -> None:
            self._begin(step, "save")
            with self._ledger.run.during(Account.CHECKPOINT):
                await write_state(directory, self._roles.trainer, self._directory, ahead, self._scope.fetch)

        ahead = self._ahead
        state = {**self._boundary, RUN: self._run, START: self._start}
        await self._saver.save_if_due(step, state, write, self._last, stopping=stopping)

    # ----------------------------------------------------------------------------------------------------- told to stop
    async def _in_time(self, steps: asyncio.Task[None]) -> None:
        """Wait for the steps. Once the run is told to stop, the one under way may finish while there is time to save.

        One that cannot is given up, and the state before it saved if the trainer has not touched its weights since.
        """
        asked = asyncio.Event()
        listening = self._stop.listen(asked.set)
        waiting = asyncio.create_task(asked.wait())
        try:
            await asyncio.wait({steps, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not steps.done():
                reserve = 2 * self._saver.longest_s or RESERVE * self._stop.grace_s
                await asyncio.wait({steps}, timeout=max(0.0, self._stop.remaining_s - reserve))
            if not steps.done():
                await _given_up(steps)
                if self._phase in TRAINER_IS_IDLE and self._driver.steps_done > 0:
                    await self._save(int(self._boundary["steps_done"]), stopping=True)  # type: ignore[call-overload]
                await self._saver.settle()
                raise self._stopped()
            await steps
        finally:
            listening()
            waiting.cancel()
            await _given_up(steps)

    def _stopped(self) -> StoppedError:
        newest = next(iter(self._saver.checkpoints.states()), None)
        done = int(self._boundary["steps_done"])  # type: ignore[call-overload]
        kept = f"its state after step {newest.step} is saved" if newest else "no state is saved"
        return StoppedError(f"PPO was told to stop and has, after {done} of {self._config.num_steps} steps; {kept}")

    def _begin(self, step: int, phase: str) -> None:
        self._phase = phase
        self._trace.begin(step, phase)
        self._ledger.begins(phase)
        self._board.note(phase=f"ppo: {phase}")

    async def _evaluated(self, step: int) -> Mapping[str, float]:
        """Answer held-out prompts with the weights that the generators hold now."""
        every = self._config.eval_every
        if self._heldout is None or step % every:
            return {}
        self._begin(step, "evaluate")
        begun = time.perf_counter()
        roles = self._roles
        with self._ledger.run.during(Account.EVALUATION):
            responses = await self._heldout.answers(
                self._scope, roles.generator, roles.reference, roles.reward_model, NoProgress()
            )
            found = await self._watch.examined(responses, self._scope, roles, NoProgress())
        return {**heldout_metrics(responses), **found, "time/evaluate": time.perf_counter() - begun}


def make_saver(context: Context, trainer: PpoTrainer) -> StateSaver:
    """The states below ``ppo/state``, as the configuration wants them; the trainer is told of those that are whole."""
    config, ppo = context.config.checkpoints, context.config.ppo
    return StateSaver(
        Checkpoints(context.directory("ppo") / "state", config.keep, best_rule(config)),
        SaveSchedule(ppo.checkpoint_every, config.every_minutes, ppo.num_steps),
        mirror=make_mirror(config),
        warn=warned,
        on_saved=lambda state: trainer.checkpointed(str(state.directory), TRAINER, state.step),
    )


def best_rule(config: CheckpointConfig) -> Best | None:
    return Best(config.best_metric, highest=config.best == "highest") if config.best_metric else None


def make_mirror(config: CheckpointConfig) -> Mirror | None:
    return Mirror(f"{config.mirror.rstrip('/')}/ppo") if config.mirror else None


async def _given_up(task: asyncio.Task[None]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class NoProgress:
    """For work that is part of a step and has no bar of its own."""

    def advance(self, count: int = 1) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


def _headline(metrics: Mapping[str, float]) -> str:
    if "ppo/kl_per_response" not in metrics:
        return f"score {metrics['ppo/score_mean']:.2f}, skipped"
    text = (
        f"score {metrics['ppo/score_mean']:.2f}, KL {metrics['ppo/kl_per_response']:.2f}, "
        f"length {metrics['ppo/response_length']:.1f}"
    )
    gold = metrics.get("gold/heldout_mean")
    return text if gold is None else f"{text}, gold {gold:.3f}"
