"""A PPO stage over fakes, with its real loop, states, log and trace: a run that may be killed anywhere."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_ray import directories
from rlhf_ray.config.checkpoints import CheckpointConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.jsonl import cut_half_line
from rlhf_ray.driver import Driver, Roles
from rlhf_ray.metrics.sinks import read_metrics
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.phases import PHASES_FILE
from rlhf_ray.pipeline.ppo_run import PpoRun
from rlhf_ray.roles import Ref, ScoredShard
from tests.fakes import FakeTrainer, World, make_driver
from tests.pipeline.fakes import make_context

PPO = PpoConfig(num_steps=6, rollouts_per_step=6, num_minibatches=1, checkpoint_every=2)
TRAINED_FILE = "trained.jsonl"


class Here:
    """Blocks lie in this process."""

    async def fetch(self, ref: Ref) -> Any:
        return ref

    async def put(self, block: object) -> Ref:
        return block


class WritingTrainer(FakeTrainer):
    """Writes down what it is given; ``pause_s`` passes inside each of its verbs."""

    def __init__(self, world: World, directory: Path, pause_s: float) -> None:
        super().__init__(world)
        self._file = directory / TRAINED_FILE
        cut_half_line(self._file)
        self._pause_s = pause_s

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        metrics = await super().update(step=step, shards=shards, kl_coef=kl_coef, baselines=baselines)
        await asyncio.sleep(self._pause_s)
        pairs = self._world.updates[-1].pairs
        line = {"step": step, "trained": [[s.rollout_id, s.order, score.total] for s, score in pairs]}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return metrics

    async def save_state(self, directory: str, tag: str) -> None:
        for number in range(3):
            (Path(directory) / f"rank_{number}").write_bytes(b"weights" * 1000)
            await asyncio.sleep(self._pause_s / 3)
        await super().save_state(directory, tag)


def run_context(root: Path, ppo: PpoConfig = PPO, checkpoints: CheckpointConfig | None = None) -> Context:
    """A context in which SFT is done."""
    context = make_context(root, replace(RunConfig(), ppo=ppo, checkpoints=checkpoints or CheckpointConfig()))
    context.finished["sft"] = Artefact("sft", "k", {}, {}, "d", "c", "now", 1.0, {"policy": str(root / "sft")})
    context.store.begin("ppo", f"key of {ppo.num_steps}", "base")
    return context


def make_run(context: Context, *, world: World | None = None, pause_s: float = 0.0) -> tuple[PpoRun, Driver, World]:
    """The stage, ready to train, and what it is made of."""
    driver, world = make_driver(context.config.ppo, world=world)
    driver.trainer, parts = WritingTrainer(world, context.directory("ppo"), pause_s), driver.collector
    roles = Roles(parts.generator, parts.reference, parts.reward_model, driver.trainer, driver.weights)
    return PpoRun(context, driver, roles, scope=Here()), driver, world  # type: ignore[arg-type]


def run_to_the_end(root: Path, ppo: PpoConfig, pause_s: float) -> None:
    """What a process of its own does: begin, or go on, and end; slow enough to be killed anywhere."""
    plain_flush = directories.flush

    def slow_flush(paths: Any) -> None:
        time.sleep(pause_s)
        plain_flush(paths)

    directories.flush = slow_flush
    run, _, _ = make_run(run_context(root, ppo), pause_s=pause_s)
    asyncio.run(run.train())
    (root / "ended").touch()


# ----------------------------------------------------------------------------------------------------- what a run left
def metrics_of(root: Path) -> list[tuple[int, dict[str, float]]]:
    """The log, times left out."""
    rows = read_metrics(root / "ppo" / "metrics.jsonl")
    return [(row.step, {k: v for k, v in row.metrics.items() if not k.startswith("time/")}) for row in rows]


def trained_in(root: Path) -> dict[int, list[list[list[Any]]]]:
    """By step, what every attempt at it was given."""
    steps: dict[int, list[list[list[Any]]]] = {}
    for line in (root / "ppo" / TRAINED_FILE).read_text().splitlines():
        content = json.loads(line)
        steps.setdefault(content["step"], []).append(content["trained"])
    return steps


def phases_of(root: Path) -> list[tuple[int, str]]:
    path = root / "ppo" / PHASES_FILE
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # a reader may see a line half written
    return [(content["step"], content["phase"]) for content in map(json.loads, lines)]
