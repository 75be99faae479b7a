"""Alarms in a stage of PPO or online DPO: fed after every step and every evaluation, told, kept, and heeded.

A person answers a pause by laying a file into the stage's directory (``rlhf-ray resume-paused RUN``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray.config.alarms import CHANGES_TRAINING, Action, AlarmsConfig
from rlhf_ray.driver import Driver
from rlhf_ray.errors import ConfigError
from rlhf_ray.hacking.alarms import AlarmBoard
from rlhf_ray.hacking.evidence import Evaluated, Known, samples_of
from rlhf_ray.hacking.log import Alarm, AlarmLog
from rlhf_ray.hacking.measures import Past, detected
from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.metrics.progress import ProgressReport
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.evaluation import HeldOut
from rlhf_ray.pipeline.probing import Probes, known_to
from rlhf_ray.roles import Generator, Reference, RewardModel

PAUSED_FILE = "paused.json"  # there while the run waits
GO_ON_FILE = "resume_paused"  # laid by the person who has looked
WATCHED = ("ppo", "dpo")  # stages


class Asked(Protocol):
    """The roles that an evaluation asks."""

    @property
    def generator(self) -> Generator: ...

    @property
    def reference(self) -> Reference: ...

    @property
    def reward_model(self) -> RewardModel: ...


class Watch:
    """The alarms of one stage. Without probes, where nothing is evaluated, only the steps' own metrics are watched."""

    def __init__(self, config: AlarmsConfig, directory: Path, num_steps: int) -> None:
        self._config = config
        self._directory = directory
        self._num_steps = num_steps
        self._board = AlarmBoard(config.rules if config.enabled else {})
        self._log: AlarmLog | None = None
        self._probes: Probes | None = None
        self._known = Known(harmful_kinds=tuple(config.harmful_kinds))
        self._past = Past()
        self._evaluated = Evaluated(())  # the newest evaluation: its responses are an alarm's samples
        self._stopped_of = 0  # num_steps of the run that an alarm has stopped
        self.count = 0
        self.waiting: tuple[str, ...] = ()  # alarms that a person is to look at before the run goes on

    @classmethod
    def of(cls, context: Context, heldout: HeldOut | None) -> Watch:
        """That of PPO."""
        return cls(context.config.alarms, context.directory("ppo"), context.config.ppo.num_steps)._on(context, heldout)

    @classmethod
    def of_dpo(cls, context: Context, heldout: HeldOut) -> Watch:
        """That of online DPO, which has no KL coefficient and no best state: rules that would change it warn."""
        config = context.config.alarms
        rules = {
            name: replace(rule, action="warn") if rule.action in CHANGES_TRAINING else rule
            for name, rule in config.rules.items()
        }
        watch = cls(replace(config, rules=rules), context.directory("dpo"), context.config.dpo.online.num_steps)
        return watch._on(context, heldout)

    def _on(self, context: Context, heldout: HeldOut | None) -> Watch:
        """The same, asking around ``heldout`` what the detectors need."""
        if heldout is not None and context.config.alarms.enabled:
            self._probes, self._known = Probes.of(context, heldout), known_to(context)
        return self

    def begin(self, resumed_step: int | None) -> None:
        """Open the file of alarms; call it once the state is restored."""
        self._log = AlarmLog(self._directory, resumed_step)
        if not self.waiting:
            self._forget_pause()

    @property
    def stopped(self) -> bool:
        """Whether an alarm has ended this run; one that is asked for more steps since then goes on."""
        return self._stopped_of >= self._num_steps

    async def examined(
        self, responses: Sequence[GradedResponse], scope: Scope, roles: Asked, bar: ProgressReport
    ) -> dict[str, float]:
        """Ask what the detectors need beside the held-out ``responses``; what they find, by metric."""
        if self._probes is None:
            return {}
        evaluated = await self._probes.evaluated(
            responses, scope, roles.generator, roles.reference, roles.reward_model, bar
        )
        return self.found(evaluated)

    def found(self, evaluated: Evaluated) -> dict[str, float]:
        """What the detectors find, which becomes part of the past."""
        metrics = detected(evaluated, self._past, self._known)
        self._past, self._evaluated = self._past.with_(evaluated), evaluated
        return metrics

    def heed(self, step: int, metrics: Mapping[str, float], driver: Driver | None = None) -> frozenset[Action]:
        """Tell every rule of the step; raise the KL coefficient of PPO's driver where one asks for it.

        What else is asked for is returned: the state that is saved next knows of it.
        """
        alarms = self._raised(step, metrics)
        actions = frozenset(alarm.action for alarm in alarms)
        if "raise_kl" in actions and driver is not None:
            before = driver.kl_controller.coef
            driver.kl_controller = driver.kl_controller.raised(
                factor=self._config.kl_factor, limit=self._config.max_kl_coef
            )
            print(f"!!! The KL coefficient goes from {before:.4g} to {driver.kl_controller.coef:.4g}", flush=True)
        if "pause" in actions:
            self.waiting = tuple(alarm.name for alarm in alarms if alarm.action == "pause")
        if "stop_keep_best" in actions:
            self._stopped_of = self._num_steps
        return actions  # type: ignore[return-value]

    def _raised(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        alarms = []
        for fired in self._board.observe(metrics):
            samples = samples_of(fired.metric, self._evaluated, self._known, self._config.num_samples)
            alarms.append(Alarm.of(fired, step, samples))
            print(alarms[-1].told(), flush=True)
            if self._log is not None:
                self._log.write(alarms[-1])
        self.count += len(alarms)
        return alarms

    async def answered(self, step: int, is_told_to_stop: Callable[[], bool]) -> None:
        """Wait until a person says that the run may go on, or the run is told to stop; it then waits when resumed."""
        answer = self._directory / GO_ON_FILE
        content = {"step": step, "alarms": list(self.waiting), "answer": str(answer)}
        (self._directory / PAUSED_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
        print(
            f"!!! PAUSED after step {step} by {', '.join(self.waiting)}. To go on: rlhf-ray resume-paused "
            f"{self._directory.parent}, or touch {answer}",
            flush=True,
        )
        while not answer.exists():
            if is_told_to_stop():
                return
            await asyncio.sleep(self._config.pause_poll_s)
        self.waiting = ()
        self._forget_pause()
        print("!!! The run goes on", flush=True)

    def _forget_pause(self) -> None:
        for name in (GO_ON_FILE, PAUSED_FILE):
            (self._directory / name).unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------------------------------- state
    def state(self) -> dict[str, Any]:
        """Plain data: all that a resumed run needs to raise the same alarms."""
        return {
            "board": self._board.state(),
            "past": self._past.state(),
            "count": self.count,
            "waiting": list(self.waiting),
            "stopped_of": self._stopped_of,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; one of an earlier version, which is empty, begins anew."""
        if not state:
            return
        self._board.restore(state["board"])
        self._past = Past.from_state(state["past"])
        self.count = int(state["count"])
        self.waiting = tuple(state["waiting"])
        self._stopped_of = int(state["stopped_of"])


def resume_paused(run: Path) -> str:
    """Tell a paused run that it may go on; what it was paused by. ConfigError for one that is not paused."""
    stage = next((run / name for name in WATCHED if (run / name / PAUSED_FILE).is_file()), None)
    if stage is None:
        rule = "is not paused by an alarm"
        raise ConfigError("RUN_DIR", str(run), rule, "give the output_dir of a run that says PAUSED")
    paused = json.loads((stage / PAUSED_FILE).read_text(encoding="utf-8"))
    (stage / GO_ON_FILE).touch()
    return f"after step {paused['step']} by {', '.join(paused['alarms'])}"
