"""What ``rlhf-ray evaluate --model --suite`` does once its configuration stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.cluster import cluster, resolve_device
from actors.fleet import Fleet
from launch.command import be_quiet, endpoint_key
from launch.jobs import end_on_sigterm, wanted_cpus
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.suite import load_suite
from rlhf_ray.data.tasks import build_task
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.artefacts import ArtefactStore
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.suites import TABLE, Examination, heldout_suite, read_suites, run_suites, take_up_finished
from rlhf_ray.suites.examinees import parse_examinees, require_baseline
from rlhf_ray.suites.results import results_table


@dataclass(frozen=True)
class Asked:
    """What stands on the command line."""

    models: tuple[str, ...]
    suites: tuple[Path, ...]
    baseline: str
    output: Path | None
    key_env: str


class FleetOnDemand:
    """A cluster and its fleet that start when an actor is first wanted: kept answers and endpoints need none."""

    def __init__(self, config: RunConfig, stack: ExitStack) -> None:
        self._config = config
        self._stack = stack
        self._fleet: Fleet | None = None

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Any]:
        async with self._started().scope() as scope:
            yield scope

    def _started(self) -> Fleet:
        if self._fleet is None:
            self._stack.enter_context(cluster(self._config.cluster, wanted_cpus=wanted_cpus(self._config)))
            end_on_sigterm()
            self._fleet = Fleet(self._config, resolve_device(self._config.device))
        return self._fleet


async def evaluate_suites(config: RunConfig, asked: Asked, *, command: str) -> None:
    """Ask what was not asked before, print the table and say where it lies. Nothing of the run is changed."""
    be_quiet()
    with ExitStack() as stack:
        store = ArtefactStore(Path(config.output_dir).resolve())
        context = Context(config, build_task(config.data), FleetOnDemand(config, stack), store, command)
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
            target=(asked.output or store.root / "suites").resolve(),
            key=endpoint_key(asked.key_env),
        )
        rows = await run_suites(context, exam)
    Console().print(results_table(rows, exam.names, exam.baseline))
    print(f"Table, rows and responses: {exam.target / TABLE}", flush=True)
