"""What the commands of AI feedback do once their configuration stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors import requirements
from actors.cluster import cluster, resolve_device
from actors.fleet import Fleet
from actors.placement import total
from launch.command import be_quiet
from launch.jobs import NoFleet, accounted, end_on_sigterm, open_store, run_until, wanted_cpus
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.tasks import build_task
from rlhf_ray.errors import ConfigError
from rlhf_ray.feedback.store import open_store as open_preferences
from rlhf_ray.feedback.store import require_store
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.judging import check_judge, judge_directory, judge_items
from rlhf_ray.pipeline.revision import check_revision, make_revisions
from rlhf_ray.pipeline.run import run_stages


async def judge_comparisons(config: RunConfig, *, command: str) -> None:
    """Judge the items of ``judge.store``, or run up to the stage in which the judge compares the run's responses."""
    judge = config.judge
    if not judge.is_there:
        raise ConfigError("judge.kind", "none", "leaves nobody to judge", "use judge.kind=model, endpoint or simulated")
    if not judge.store:
        await run_until(config, until="comparison", report=False, command=command)
        return
    require_store(judge.store, field="judge.store")
    context = _context(config, command)
    check_judge(context)
    async with _started(context):
        if judge.kind == "model" and not judge.path:
            await run_stages(context, "sft")
        context.ledger.stage("judge")
        with open_preferences(judge.store) as store:
            await judge_items(context, store, store.items())
    print(f"Judgements: {judge.store}\nQuestions and answers: {judge_directory(context)}", flush=True)


async def revise_responses(config: RunConfig, *, command: str) -> None:
    """Make demonstrations by critique and revision, after SFT where it is not done."""
    context = _context(config, command)
    check_revision(context)
    check_judge(context)
    async with _started(context, always=True):
        await run_stages(context, "sft")
        context.ledger.stage("revision")
        made = await make_revisions(context)
    print(f"{made['revised']} of {made['prompts']} responses revised: {made['steps']}", flush=True)
    print(f"Demonstrations, for sft.demonstrations: {made['demonstrations']}", flush=True)


def _context(config: RunConfig, command: str) -> Context:
    be_quiet()
    return Context(config, build_task(config.data), NoFleet(), open_store(config), command)


@asynccontextmanager
async def _started(context: Context, *, always: bool = False) -> AsyncIterator[None]:
    """A cluster, a fleet and a ledger for the context, where its judge is served or ``always``."""
    config = context.config
    if config.judge.kind != "model" and not always:
        yield
        return
    trains = always or not config.judge.path
    cpus = wanted_cpus(config) if trains else total(requirements.generators(config, "cpu"))[0]
    with accounted(context.store.root) as ledger, cluster(config.cluster, wanted_cpus=cpus):
        end_on_sigterm()
        fleet = Fleet(config, resolve_device(config.device), ledger)
        context.fleet, context.ledger = fleet, ledger
        async with fleet.kept():
            yield
