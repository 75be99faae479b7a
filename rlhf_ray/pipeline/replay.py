"""A run again from its saved rollouts: the same driver and a fresh trainer; nothing is sampled, scored or synced.

Every number that the run logged is computed again and compared. With the run's own settings they agree bit for bit;
with others (``training.num_ranks=2``) the differences are what the settings make.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from rich.table import Table

from rlhf_ray.config.run import RunConfig
from rlhf_ray.driver import Roles
from rlhf_ray.errors import DataError
from rlhf_ray.lookahead import Schedule
from rlhf_ray.metrics.progress import progress
from rlhf_ray.metrics.sinks import METRICS_FILE, read_metrics
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.lineage import changes
from rlhf_ray.pipeline.ppo import make_driver, ppo_spec, pretraining_mix, training_prompts
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import GenerationRequest, Rollout, SamplingSettings, Score
from rlhf_ray.roles import PpoTrainer, Ref, RolloutShard, ScoredShard, SyncReport
from rlhf_ray.rollout_store import ROLLOUTS, SavedShard, SavedStep, step_directory
from rlhf_ray.wrapped import WrappedTrainer

Put: TypeAlias = Callable[[object], Awaitable[Ref]]
COMPARED = ("ppo/", "reward/")  # what follows from the rollouts; evaluations, times, the fleet do not
NOT_COMPARED = ("ppo/sync_bytes", "ppo/saved_bytes")


# ---------------------------------------------------------------------------------------------------- roles that read
class SavedRun:
    """The saved steps of a run, one open at a time."""

    def __init__(self, root: Path, put: Put) -> None:
        self.put = put
        self._root = root
        self._number = 0
        self.said: dict[int, SavedShard] = {}  # what the frozen servers say of the shards that were given out
        self.advance()

    def advance(self) -> None:
        """Go on to the next step; what was given out of this one is let go."""
        self._number += 1
        self._step: SavedStep | None = None
        self._waiting: list[int] = []
        self.said.clear()

    @property
    def step(self) -> SavedStep:
        if self._step is None:
            self._step = SavedStep(step_directory(self._root, self._number))
            self._waiting = list(range(len(self._step)))
        return self._step

    def take(self, requests: Mapping[str, GenerationRequest]) -> list[int]:
        """Shards that hold ``requests``, each given out once. Raises DataError for a request that was not saved."""
        step = self.step
        taken: list[int] = []
        saved: list[str] = []
        for index in self._waiting:  # a greedy response may be asked for in two rounds, under one name
            names = step.rollout_ids(index)
            if names[0] in requests and names[0] not in saved:
                taken.append(index)
                saved += names
        self._require(list(requests), set(saved), "asks for rollout {!r}, which was not saved")
        self._require(saved, set(requests), "does not ask for rollout {!r}, which was saved")
        self._waiting = [index for index in self._waiting if index not in taken]
        return taken

    def require_all_taken(self) -> None:
        left = [name for index in self._waiting for name in self.step.rollout_ids(index)]
        self._require(left, set(), "does not ask for rollout {!r}, which was saved")

    def require_same(self, request: GenerationRequest, rollout: Rollout) -> None:
        """Raise DataError where the driver asks for something else than what was saved."""
        for name, asked, saved in (
            ("seed", request.seed, rollout.seed),
            ("order", request.order, rollout.order),
            ("prompt_id", request.prompt_id, rollout.prompt_id),
            ("prompt tokens", request.prompt_ids.tolist(), rollout.prompt_ids.tolist()),
        ):
            if asked != saved:
                raise DataError(
                    f"{self.step.directory}: {name} of rollout {rollout.rollout_id!r} is {saved}, and the driver asks "
                    f"for {asked}; replay with the settings, data and code that the run was made with"
                )

    def _require(self, names: Sequence[str], among: set[str], what: str) -> None:
        strangers = [name for name in names if name not in among]
        if strangers:
            raise DataError(
                f"{self.step.directory}: the driver {what.format(strangers[0])}; replay with the settings, data and "
                "code that the run was made with"
            )


class ReplayGenerator:
    """Gives saved rollouts for requests that are the saved ones to the bit."""

    def __init__(self, run: SavedRun) -> None:
        self._run = run

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        asked = {request.rollout_id: request for request in requests}
        for index in self._run.take(asked):
            saved = self._run.step.shard(index)
            for rollout in saved.rollouts:
                self._run.require_same(asked[rollout.rollout_id], rollout)
            block = await self._run.put(saved.rollouts)
            shard = RolloutShard(tuple(rollout.summary for rollout in saved.rollouts), block)
            self._run.said[id(shard)] = replace(saved, rollouts=())
            yield shard


class ReplayReference:
    def __init__(self, run: SavedRun) -> None:
        self._run = run

    async def logprobs(self, shard: RolloutShard) -> Ref:
        return await self._run.put(self._run.said[id(shard)].reference)


class ReplayRewardModel:
    def __init__(self, run: SavedRun) -> None:
        self._run = run

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        return self._run.said[id(shard)].scores


class ReplayTrainer(WrappedTrainer):
    """The trainer itself; after its update the next step is opened."""

    def __init__(self, trainer: PpoTrainer, run: SavedRun) -> None:
        super().__init__(trainer)
        self._run = run

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        self._run.require_all_taken()
        try:
            return await super().update(step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)
        finally:
            self._run.advance()


class ReplayWeightSync:
    """There is no engine; versions are counted on."""

    async def sync(self, version: int, *, waited_s: float | None = None) -> SyncReport:
        return SyncReport(version, "replayed", num_bytes=0, seconds=0.0)


def replayed_roles(trainer: PpoTrainer, root: Path, put: Put) -> Roles:
    """Roles that read the steps saved below ``root``; only the trainer computes."""
    run = SavedRun(root, put)
    return Roles(
        generator=ReplayGenerator(run),
        reference=ReplayReference(run),
        reward_model=ReplayRewardModel(run),
        trainer=ReplayTrainer(trainer, run),
        weights=ReplayWeightSync(),
    )


# ---------------------------------------------------------------------------------------------------------- comparison
@dataclass(frozen=True)
class Difference:
    """The largest |difference| of one metric over the steps, and the first step that has it."""

    metric: str
    largest: float
    step: int


@dataclass(frozen=True)
class Comparison:
    """A run and its replay. ``settings`` are those that differ."""

    num_steps: int
    differences: tuple[Difference, ...]
    settings: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return all(difference.largest == 0.0 for difference in self.differences)

    @property
    def verdict(self) -> str:
        if self.exact:
            return f"The replay of {self.num_steps} steps agrees bit for bit in {len(self.differences)} metrics."
        other = sum(difference.largest != 0.0 for difference in self.differences)
        return f"The replay of {self.num_steps} steps differs in {other} of {len(self.differences)} metrics."

    def table(self) -> Table:
        table = Table("metric", "max |difference|", "at step", title="The run and its replay")
        for d in sorted(self.differences, key=lambda d: (-d.largest, d.metric)):
            table.add_row(d.metric, f"{d.largest:.3g}", "" if d.largest == 0.0 else str(d.step))
        return table


def compared(run: Mapping[int, Mapping[str, float]], again: Mapping[int, Mapping[str, float]]) -> Comparison:
    """Compare the steps in ``again`` with those of the run; a metric that one of them lacks differs by infinity."""
    largest: dict[str, Difference] = {}
    for step in sorted(again):
        for name in sorted({*run[step], *again[step]}):
            if not name.startswith(COMPARED) or name in NOT_COMPARED:
                continue
            difference = _difference(run[step].get(name), again[step].get(name))
            if name not in largest or difference > largest[name].largest:
                largest[name] = Difference(name, difference, step)
    return Comparison(len(again), tuple(largest.values()))


def _difference(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return math.inf
    if np.float64(a).tobytes() == np.float64(b).tobytes() or (math.isnan(a) and math.isnan(b)):
        return 0.0
    difference = abs(a - b)
    return math.inf if math.isnan(difference) else difference or 5e-324  # 0.0 and -0.0 are not the same bits


# ------------------------------------------------------------------------------------------------------- the whole run
@dataclass(frozen=True)
class RecordedRun:
    """What a run left: its settings, its metrics by step, its saved steps. All steps that were logged are saved."""

    config: RunConfig
    metrics: Mapping[int, Mapping[str, float]]
    rollouts: Path

    @classmethod
    def of(cls, directory: Path, config: RunConfig) -> RecordedRun:
        """Read ``directory``, that of the stage. Raises DataError where a step is missing."""
        metrics = {row.step: row.metrics for row in read_metrics(directory / METRICS_FILE) if row.step > 0}
        root = directory / ROLLOUTS
        if not metrics:
            raise DataError(f"{directory / METRICS_FILE}: no step was logged, so that there is nothing to compare with")
        for step in range(1, max(metrics) + 1):
            if not step_directory(root, step).is_dir():
                raise DataError(
                    f"{step_directory(root, step)}: not there, and a replay needs every step from the first to the "
                    f"last ({max(metrics)}); run with ppo.save_rollouts=true from the start"
                )
        return cls(config, metrics, root)


async def replay_run(context: Context, run: RecordedRun) -> Comparison:
    """Run PPO again from the rollouts of ``run``, with the context's settings.

    Raises DataError where a step is damaged or the driver asks for other rollouts.
    """
    tools = TextTools.of(context)
    prompts, _ = training_prompts(context, tools)
    again: dict[int, Mapping[str, float]] = {}
    async with context.fleet.scope() as scope:
        trainer = await scope.ppo_trainer(ppo_spec(context), demonstrations=pretraining_mix(context, tools))
        driver = make_driver(context, replayed_roles(trainer, run.rollouts, scope.put), tools, prompts, Schedule())
        # The schedule of the learning rate follows from ppo.num_steps, so that the driver alone stops here.
        driver.config = replace(driver.config, num_steps=min(max(run.metrics), driver.config.num_steps))
        with progress("Replay", driver.config.num_steps, "step") as bar:

            async def after_step(step: int, metrics: Mapping[str, float]) -> None:
                again[step] = dict(metrics)
                bar.advance()

            await driver.run(after_step)
    return replace(compared(run.metrics, again), settings=tuple(changes(asdict(run.config), asdict(context.config))))
