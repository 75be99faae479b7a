"""What ``rlhf-ray evaluate --model --suite`` does once its configuration stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.cluster import cluster, resolve_device
from actors.fleet import Fleet
from launch.command import be_quiet, endpoint_key
from launch.jobs import accounted, end_on_sigterm, wanted_cpus
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.suite import load_suite
from rlhf_ray.data.tasks import build_task
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.artefacts import ArtefactStore
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.suites import TABLE, Examination, heldout_suite, read_suites, run_suites, take_up_finished
from rlhf_ray.suites.examinees import parse_examinees, require_baseline
from rlhf_ray.suites.results import results_table

STAGE = "suites"  # in the ledger


@dataclass(frozen=True)
class Asked:
    """What stands on the command line."""

    models: tuple[str, ...]
    suites: tuple[Path, ...]
    baseline: str
    output: Path | None
    key_env: str


class FleetOnDemand:
    """A cluster and its fleet that start when an actor is first wanted: kept answers and endpoints need none.

    From then on actors go from model to model, and a ledger in ``target`` says what they do.
    """

    def __init__(self, config: RunConfig, target: Path, stack: AsyncExitStack) -> None:
        self._config = config
        self._target = target
        self._stack = stack
        self._fleet: Fleet | None = None

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Any]:
        fleet = await self._started()
        async with fleet.scope() as scope:
            yield scope

    async def _started(self) -> Fleet:
        if self._fleet is None:
            self._target.mkdir(parents=True, exist_ok=True)
            ledger = self._stack.enter_context(accounted(self._target))
            self._stack.enter_context(cluster(self._config.cluster, wanted_cpus=wanted_cpus(self._config)))
            end_on_sigterm()
            ledger.stage(STAGE)
            self._fleet = Fleet(self._config, resolve_device(self._config.device), ledger)
            await self._stack.enter_async_context(self._fleet.kept())
        return self._fleet


async def evaluate_suites(config: RunConfig, asked: Asked, *, command: str) -> None:
    """Ask what was not asked before, print the table and say where it lies. Nothing of the run is changed."""
    be_quiet()
    store = ArtefactStore(Path(config.output_dir).resolve())
    target = (asked.output or store.root / "suites").resolve()
    async with AsyncExitStack() as stack:
        context = Context(config, build_task(config.data), FleetOnDemand(config, target, stack), store, command)
        there = take_up_finished(context)
        examinees = parse_examinees(asked.models or there)
        if not examinees:
            rule = "holds no model yet"
            raise ConfigError("output_dir", config.output_dir, rule, "train one first, or name one with --model")
        configs = [load_suite(path) for path in asked.suites] or [heldout_suite(context)]
        exam = Examination(
            suites=read_suites(context, configs),
            examinees=tuple(examinees),
            baseline=require_baseline(asked.baseline, examinees),
            target=target,
            key=endpoint_key(asked.key_env),
        )
        rows = await run_suites(context, exam)
    Console().print(results_table(rows, exam.names, exam.baseline))
    print(f"Table, rows and responses: {exam.target / TABLE}", flush=True)
