"""What a command does once its configuration stands: cluster, fleet, stages, report."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from rich.console import Console

from actors import requirements
from actors.cluster import cluster, known_accelerator, resolve_device
from actors.fleet import Fleet
from actors.placement import total
from launch.command import be_quiet
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import BEST_OF_N, RunConfig
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.data.tasks import build_task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.ledger.record import RunLedger
from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.metrics.memory import PeakMemory
from rlhf_ray.metrics.report import terminal_summary
from rlhf_ray.metrics.report_ledger import terminal_accounts, verdict_of
from rlhf_ray.metrics.rounds import plot_rounds, rounds_table
from rlhf_ray.pipeline.accounting import drawn_up, ledger_of
from rlhf_ray.pipeline.artefacts import ArtefactStore, write_atomically
from rlhf_ray.pipeline.context import Context, Scope, warned
from rlhf_ray.pipeline.door import checkpoint_directory
from rlhf_ray.pipeline.evaluation import evaluate_models
from rlhf_ray.pipeline.ppo_run import make_mirror
from rlhf_ray.pipeline.quarantine import Quarantined, examine
from rlhf_ray.pipeline.replay import RecordedRun, replay_run
from rlhf_ray.pipeline.report import write_all
from rlhf_ray.pipeline.rounds import require_iterable, require_labels, run_rounds, summarise_rounds
from rlhf_ray.pipeline.run import load_finished, run_stages, take_up
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.stopping import Stop, StoppedError
from rlhf_ray.supervision.board import told
from rlhf_ray.viewing.snapshot import SNAPSHOT_FILE, write_snapshot

MEMORY_FILE = "peak_memory_bytes"


async def run_until(config: RunConfig, *, until: str, report: bool, command: str) -> None:
    """Run the stages up to ``until``, then write the report where asked."""
    be_quiet()
    task = build_task(config.data)
    store = open_store(config)
    print(f"Run {config.name}: {store.root} (seed {config.seed})", flush=True)
    if config.checkpoints.mirror:
        make_mirror(config.checkpoints)  # a URL that nobody can open is an error at the door
    stop = Stop(config.checkpoints.grace_s)
    with (
        accounted(store.root) as ledger,
        cluster(config.cluster, wanted_cpus=wanted_cpus(config)),
        PeakMemory() as memory,
    ):
        end_on_sigterm(stop)
        fleet = Fleet(config, resolve_device(config.device), ledger)
        fleet.require_room()
        context = Context(
            config, task, fleet, store, command, stop=stop, ledger=ledger, accelerator=known_accelerator()
        )
        try:
            async with fleet.kept(), told(store.root, context.board, fleet=fleet.snapshot, resize=fleet.resize):
                await run_stages(context, until)
        except asyncio.CancelledError:
            if stop.asked:
                raise StoppedError("the run was told to stop and has; what its stages had saved stays") from None
            raise
    peak = _remember_peak(store, memory.peak_bytes)
    if report:
        _report(context, peak)


async def iterate_rounds(config: RunConfig, *, command: str) -> None:
    """Run the rounds that are not done, and write ``rounds.json``, ``rounds.png`` and a report of each round."""
    be_quiet()
    method = require_iterable(config)
    task = build_task(config.data)
    require_labels(config, task)
    store = open_store(config)
    print(f"Run {config.name}: {store.root} (seed {config.seed})", flush=True)
    with (
        accounted(store.root) as ledger,
        cluster(config.cluster, wanted_cpus=wanted_cpus(config)),
        PeakMemory() as memory,
    ):
        end_on_sigterm()
        fleet = Fleet(config, resolve_device(config.device), ledger)
        fleet.require_room()
        context = Context(config, task, fleet, store, command, ledger=ledger, accelerator=known_accelerator())
        async with fleet.kept(), told(store.root, context.board, fleet=fleet.snapshot, resize=fleet.resize):
            rounds = await run_rounds(context)
    _remember_peak(store, memory.peak_bytes)
    summary = summarise_rounds(rounds, method)
    write_atomically(store.root / "rounds.json", json.dumps(summary, indent=2))
    plot_rounds(summary, store.root / "rounds.png")
    Console().print(rounds_table(summary))
    print(f"Numbers: {store.root / 'rounds.json'}\nCurves: {store.root / 'rounds.png'}", flush=True)


def report_again(config: RunConfig, *, command: str) -> None:
    """Write the report from the artefacts that are there."""
    store = ArtefactStore(Path(config.output_dir).resolve())
    context = Context(config, build_task(config.data), NoFleet(), store, command)
    load_finished(context, "evaluation")
    _report(context, _remember_peak(store, 0))


async def generate_responses(config: RunConfig, *, model: str, output: Path | None, command: str) -> None:
    """Sample, score and grade responses of one model, and write them as jsonl."""
    be_quiet()
    store = ArtefactStore(Path(config.output_dir).resolve())
    context = Context(config, build_task(config.data), NoFleet(), store, command)
    load_finished(
        context, model if model in config.methods else "reward_model" if config.trains_reward_model else "sft"
    )
    if model == BEST_OF_N:
        raise ConfigError("--model", model, "is no model of its own", "give sft, another method or a checkpoint")
    if model == "sft" or model in config.methods:
        path = str(context.results(model)["policy"])
    else:
        path = str(checkpoint_directory(model, field="--model"))
    with cluster(config.cluster, wanted_cpus=wanted_cpus(config)):
        end_on_sigterm()
        context.fleet = Fleet(config, resolve_device(config.device))
        responses = (await evaluate_models(context, {model: path}))[model]
    target = output or store.root / "generations.jsonl"
    write_jsonl(target, (_row(response) for response in responses))
    print(f"{len(responses)} responses: {target}", flush=True)


async def replay_recorded(config: RunConfig, *, recorded: RunConfig, root: Path, command: str) -> bool:
    """Run PPO again from the rollouts saved under ``root``, print what differs; whether nothing does."""
    be_quiet()
    context = Context(recorded, build_task(recorded.data), NoFleet(), ArtefactStore(root.resolve()), command)
    changed = take_up(context, "ppo")
    run = RecordedRun.of(context.directory("ppo"), recorded)
    context.config = config
    with cluster(config.cluster, wanted_cpus=total(requirements.trainer(config, "cpu"))[0]):
        end_on_sigterm()
        context.fleet = Fleet(config, resolve_device(config.device))
        comparison = await replay_run(context, run)
    Console().print(comparison.table())
    for line in comparison.settings:
        print(f"other setting: {line}", flush=True)
    for line in changed:
        print(f"changed since the run: {line}", flush=True)
    print(comparison.verdict, flush=True)
    return comparison.exact


async def examine_quarantined(config: RunConfig, *, recorded: RunConfig, step: Path, command: str) -> bool:
    """Do again what failed in a quarantined step, print what is found; whether it failed as it did then."""
    be_quiet()
    root = step.resolve().parents[2]  # OUTPUT_DIR/ppo/quarantine/step_000012
    context = Context(recorded, build_task(recorded.data), NoFleet(), ArtefactStore(root), command)
    take_up(context, "ppo")
    quarantined = Quarantined.read(step.resolve())
    context.config = config
    with cluster(config.cluster, wanted_cpus=total(requirements.trainer(config, "cpu"))[0]):
        end_on_sigterm()
        context.fleet = Fleet(config, resolve_device(config.device))
        examination = await examine(context, quarantined)
    for line in examination.lines(TextTools.of(context).decode):
        print(line, flush=True)
    return examination.reproduced


@contextmanager
def accounted(root: Path) -> Iterator[RunLedger]:
    """The ledger of a run; once anybody has worked in it, its table is printed however the block ends."""
    try:
        with ledger_of(root) as ledger:
            yield ledger
    finally:
        try:
            if (found := drawn_up(root)) is not None and len(found.workers) > 1:
                Console().print(terminal_accounts(found))
                print(verdict_of(found), flush=True)
        except (DataError, OSError) as error:  # the run's own result, or failure, counts for more
            warned(f"there is no table of the ledger: {error}")


def end_on_sigterm(stop: Stop | None = None) -> None:
    """Let SIGTERM unwind the run as Ctrl-C does, so that every actor ends and the cluster is closed.

    A stage that listens to ``stop`` has its grace period to save what it has done; a second SIGTERM ends it at once.
    Call this after Ray has started: Ray sets a handler of its own, which ends the process at once.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()

    def end(task: asyncio.Task[Any]) -> None:
        if stop is None or not stop.heard or stop.asked:
            if stop is not None:
                stop.ask()
            task.cancel()
            return
        print(f"told to stop: {stop.grace_s:g} s (checkpoints.grace_s) to save what is done", flush=True)
        stop.ask()
        loop.call_later(stop.grace_s, task.cancel)

    if task is not None:
        loop.add_signal_handler(signal.SIGTERM, end, task)


def _row(response: GradedResponse) -> dict[str, object]:
    return {
        "prompt": response.prompt_text,
        "response": response.response_text,
        "kind": response.kind,
        "score": response.score,
        "grades": dict(response.grades),
        "tokens": response.num_tokens,
        "finished": response.finished,
    }


class NoFleet:
    """For commands that start nothing."""

    def scope(self) -> AbstractAsyncContextManager[Scope]:
        raise ConfigError("command", "report", "starts no actors", "run `rlhf-ray pipeline` first")


def open_store(config: RunConfig) -> ArtefactStore:
    """Make the run's directory and write the resolved configuration there; ConfigError where that cannot be done."""
    root = Path(config.output_dir).resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(root / "config.yaml", to_yaml(config))
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise ConfigError("output_dir", config.output_dir, reason, "choose another") from error
    return ArtefactStore(root)


def wanted_cpus(config: RunConfig) -> float:
    """Of the largest stage, or of all roles where they stay; with room for a fleet that sizes itself to grow."""
    generation = config.generation
    growth = (generation.most_engines - generation.num_engines) * generation.cpus_per_engine
    stages = requirements.stages(config, "cpu").values()
    if config.cluster.keep_actors:
        return growth + total(reduce(or_, map(Counter, stages)).elements())[0]
    return growth + max(total(wanted)[0] for wanted in stages)


def _remember_peak(store: ArtefactStore, peak: int) -> int:
    """The largest peak of all attempts of this run."""
    path = store.root / MEMORY_FILE
    peak = max(peak, int(path.read_text()) if path.is_file() else 0)
    write_atomically(path, str(peak))
    return peak


def _report(context: Context, peak: int) -> None:
    data, page = write_all(context, peak_memory_bytes=peak)
    write_snapshot([context.store.root], page.with_name(SNAPSHOT_FILE))
    Console().print(terminal_summary(data))
    print(f"Report: {page}\nNumbers: {context.store.root / 'summary.json'}", flush=True)
