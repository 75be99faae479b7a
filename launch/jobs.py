"""What a command does once its configuration stands: cluster, fleet, stages, report."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from rich.console import Console

from actors import requirements
from actors.cluster import cluster, resolve_device
from actors.fleet import Fleet
from actors.placement import total
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import BEST_OF_N, RunConfig
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.data.tasks import build_task
from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.metrics.memory import PeakMemory
from rlhf_ray.metrics.report import terminal_summary
from rlhf_ray.pipeline.artefacts import ArtefactStore, write_atomically
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.door import checkpoint_directory
from rlhf_ray.pipeline.evaluation import evaluate_models
from rlhf_ray.pipeline.quarantine import Quarantined, examine
from rlhf_ray.pipeline.replay import RecordedRun, replay_run
from rlhf_ray.pipeline.report import write_all
from rlhf_ray.pipeline.run import load_finished, run_stages, take_up
from rlhf_ray.pipeline.text import TextTools

MEMORY_FILE = "peak_memory_bytes"


async def run_until(config: RunConfig, *, until: str, report: bool, command: str) -> None:
    """Run the stages up to ``until``, then write the report where asked."""
    be_quiet()
    task = build_task(config.data)
    store = open_store(config)
    print(f"Run {config.name}: {store.root} (seed {config.seed})", flush=True)
    with cluster(config.cluster, wanted_cpus=_wanted_cpus(config)), PeakMemory() as memory:
        end_on_sigterm()
        fleet = Fleet(config, resolve_device(config.device))
        fleet.require_room()
        context = Context(config, task, fleet, store, command)
        await run_stages(context, until)
    peak = _remember_peak(store, memory.peak_bytes)
    if report:
        _report(context, peak)


def report_again(config: RunConfig, *, command: str) -> None:
    """Write the report from the artefacts that are there."""
    store = ArtefactStore(Path(config.output_dir).resolve())
    context = Context(config, build_task(config.data), _NoFleet(), store, command)
    load_finished(context, "evaluation")
    _report(context, _remember_peak(store, 0))


async def generate_responses(config: RunConfig, *, model: str, output: Path | None, command: str) -> None:
    """Sample, score and grade responses of one model, and write them as jsonl."""
    be_quiet()
    store = ArtefactStore(Path(config.output_dir).resolve())
    context = Context(config, build_task(config.data), _NoFleet(), store, command)
    load_finished(
        context, model if model in config.methods else "reward_model" if config.trains_reward_model else "sft"
    )
    if model == BEST_OF_N:
        raise ConfigError("--model", model, "is no model of its own", "give sft, another method or a checkpoint")
    if model == "sft" or model in config.methods:
        path = str(context.results(model)["policy"])
    else:
        path = str(checkpoint_directory(model, field="--model"))
    with cluster(config.cluster, wanted_cpus=_wanted_cpus(config)):
        end_on_sigterm()
        context.fleet = Fleet(config, resolve_device(config.device))
        responses = (await evaluate_models(context, {model: path}))[model]
    target = output or store.root / "generations.jsonl"
    write_jsonl(target, (_row(response) for response in responses))
    print(f"{len(responses)} responses: {target}", flush=True)


async def replay_recorded(config: RunConfig, *, recorded: RunConfig, root: Path, command: str) -> bool:
    """Run PPO again from the rollouts saved under ``root``, print what differs; whether nothing does."""
    be_quiet()
    context = Context(recorded, build_task(recorded.data), _NoFleet(), ArtefactStore(root.resolve()), command)
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
    context = Context(recorded, build_task(recorded.data), _NoFleet(), ArtefactStore(root), command)
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


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the run as Ctrl-C does, so that every actor ends and the cluster is closed.

    Call it after Ray has started: Ray sets a handler of its own, which ends the process at once.
    """
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def be_quiet() -> None:
    """Keep vendors' banners out of a run's output; their errors still come through."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # of this process; a trainer's own says what it has
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


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


class _NoFleet:
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


def _wanted_cpus(config: RunConfig) -> float:
    return max(total(wanted)[0] for wanted in requirements.stages(config, "cpu").values())


def _remember_peak(store: ArtefactStore, peak: int) -> int:
    """The largest peak of all attempts of this run."""
    path = store.root / MEMORY_FILE
    peak = max(peak, int(path.read_text()) if path.is_file() else 0)
    write_atomically(path, str(peak))
    return peak


def _report(context: Context, peak: int) -> None:
    data, page = write_all(context, peak_memory_bytes=peak)
    Console().print(terminal_summary(data))
    print(f"Report: {page}\nNumbers: {context.store.root / 'summary.json'}", flush=True)
