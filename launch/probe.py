"""Small PPO steps with the real parts on this machine, from which ``plan --probe`` tells what a large one takes.

Where the run's own SFT and reward model are finished they answer, and responses are as long as theirs; else models of
the same shape with random weights stand in, whose responses end at the limit.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors import requirements
from actors.cluster import cluster, resolve_device
from actors.fleet import Fleet
from actors.placement import total
from launch.command import be_quiet
from launch.jobs import NoFleet, end_on_sigterm
from rlhf_ray.collecting import Collected, PhaseClock
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.tasks import build_task
from rlhf_ray.driver import Driver, Roles
from rlhf_ray.engines.models import load_scalar
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.artefacts import Artefact, ArtefactStore, write_atomically
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.evaluation import start_rewards
from rlhf_ray.pipeline.model import make_model
from rlhf_ray.pipeline.ppo import make_driver, ppo_spec, pretraining_mix, probe_text, training_prompts
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.planning.calibration import Calibration, ProbePoint
from rlhf_ray.roles import RolloutShard, ScoredShard
from rlhf_ray.step_batch import StepBatch

STEPS = (1 / 8, 1 / 2, 1 / 4)  # of ppo.rollouts_per_step; the first is done once before, to warm up
CACHE = "calibration.json"


async def calibrate(config: RunConfig, *, command: str) -> Calibration:
    """The calibration of this machine and these models: as it was cached in the run's directory, or measured now."""
    store = ArtefactStore(Path(config.output_dir).resolve())
    cached = store.root / "probe" / CACHE
    key = key_of(config)
    if cached.is_file():
        content = json.loads(cached.read_text())
        if content["key"] == key:
            return Calibration.from_dict(content["calibration"])
    async with ppo_actors(config, store, command) as actors:
        measured = await measure(actors)
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, json.dumps({"key": key, "calibration": measured.as_dict()}, indent=1))
    return measured


def key_of(config: RunConfig) -> str:
    """What the rates depend on: the machine and every section that PPO reads."""
    parts = (
        platform.node(),
        os.cpu_count(),
        *(config.model, config.training, config.generation, config.reference, config.reward_server, config.ppo),
        *(config.rewards, config.data),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------------- actors
@dataclass
class PpoActors:
    """The parts of a PPO step, started, with the loop that drives them."""

    config: RunConfig
    roles: Roles
    driver: Driver


@asynccontextmanager
async def ppo_actors(config: RunConfig, store: ArtefactStore, command: str) -> AsyncIterator[PpoActors]:
    """Start a cluster and everything that a PPO step needs; all of it ends with the block. No checkpoint is written."""
    be_quiet()
    if "ppo" not in config.methods:
        raise ConfigError("methods", tuple(config.methods), "leaves ppo out", "add ppo: methods=[ppo]")
    context = Context(config, build_task(config.data), NoFleet(), store, command)
    await take_models(context)
    wanted = total(requirements.stages(config, "cpu")["ppo"])[0]
    with cluster(config.cluster, wanted_cpus=wanted):
        end_on_sigterm()
        context.fleet = Fleet(config, resolve_device(config.device))
        async with context.fleet.scope() as scope:
            yield await _started(context, scope)


async def _started(context: Context, scope: Scope) -> PpoActors:
    tools = TextTools.of(context)
    prompts, _ = training_prompts(context, tools)
    trainer, generator, reference, rewards = await asyncio.gather(
        scope.ppo_trainer(ppo_spec(context), demonstrations=pretraining_mix(context, tools)),
        scope.generators(str(policy_path(context))),
        scope.reference(str(policy_path(context))),
        start_rewards(context, scope),
    )
    weights = await scope.weight_sync(trainer, generator, probe_text(prompts, context.config.generation.max_model_len))
    roles = Roles(generator, reference, rewards, trainer, weights)
    return PpoActors(context.config, roles, make_driver(context, roles, tools, prompts))


async def take_models(context: Context) -> None:
    """Take up the run's SFT and reward model where they are finished; else make stand-ins in ``probe/``."""
    left = {name: context.store.read(name) for name in ("model", "sft", "reward_model")}
    needed = {"model", "sft"} | ({"reward_model"} if context.config.trains_reward_model else set())
    found = {name: artefact for name, artefact in left.items() if artefact is not None}
    if needed <= found.keys():
        context.finished |= found
        return
    model = await make_model(replace(context, store=ArtefactStore(context.store.root / "probe"), finished={}))
    context.finished["model"] = _artefact("model", model)
    context.finished["sft"] = _artefact("sft", {"policy": model["weights"]})
    if context.config.trains_reward_model:
        scalar = context.store.root / "probe" / "reward_model"
        settings = context.config.model
        import torch

        network = load_scalar(str(model["weights"]), settings, torch.float32, head_seed=0)
        network.save_pretrained(scalar)
        TextTools.of(context).tokenizer.save_pretrained(scalar)
        members = context.config.reward_model.ensemble
        names = ["model", *(f"model_{number}" for number in range(2, members + 1))]
        context.finished["reward_model"] = _artefact("reward_model", dict.fromkeys(names, str(scalar)))


def _artefact(stage: str, results: dict[str, Any]) -> Artefact:
    return Artefact(
        stage=stage,
        key="probe",
        parents={},
        settings={},
        data_hash="",
        code_version="",
        finished="",
        seconds=0.0,
        results=results,
    )


# ----------------------------------------------------------------------------------------------------------- measuring
async def measure(actors: PpoActors) -> Calibration:
    """Warm up, run the small steps, then ask each server alone."""
    config, roles = actors.config, actors.roles
    await actors.driver.sync_weights()
    sizes = [max(config.ppo.num_minibatches, round(config.ppo.rollouts_per_step * share)) for share in STEPS]
    await small_step(actors, sizes[0])
    points: list[ProbePoint] = []
    shards: list[ScoredShard] = []
    for size in sizes:
        point, shards = await small_step(actors, size)
        points.append(point)
    asked = [RolloutShard(shard.summaries, shard.rollouts) for shard in shards]
    tokens = sum(s.length for shard in asked for s in shard.summaries)
    begun = time.perf_counter()
    await _fetch_all([await roles.reference.logprobs(shard) for shard in asked])
    reference = time.perf_counter() - begun
    begun = time.perf_counter()
    for shard in asked:
        await roles.reward_model.score(shard)
    reward = time.perf_counter() - begun
    generated = sum(p.response_tokens for p in points) / sum(p.generate for p in points)
    trained = sum(p.prompt_tokens + p.response_tokens for p in points) / sum(p.update for p in points)
    model = str(config.model.path or config.model.scratch)
    return Calibration(platform.node(), model, tuple(points), generated, trained, tokens / reference, tokens / reward)


async def _fetch_all(refs: list[object]) -> None:
    """Wait until reference log-probabilities are there; with adapters there is nothing to wait for."""
    import ray

    waiting = [ref for ref in refs if isinstance(ref, ray.ObjectRef)]
    if waiting:
        await asyncio.to_thread(ray.wait, waiting, num_returns=len(waiting))


async def small_step(actors: PpoActors, rollouts: int) -> tuple[ProbePoint, list[ScoredShard]]:
    """One step of ``rollouts`` with the driver's own verbs; the weights move, and nobody keeps them."""
    driver, clock, step = actors.driver, PhaseClock(), actors.driver.steps_done + 1
    collector = driver.collector
    prompts = collector.next_prompts(max(1, rollouts // actors.config.ppo.responses_per_prompt), 0)
    requests = collector.requests_for(step, prompts, 0)
    shards = await collector.sample(step, requests, clock)
    asked = {request.rollout_id: request for request in requests}
    batch = StepBatch(Collected(step, tuple(shards), asked), tuple(shards), {})
    with clock.phase("update"):
        await driver.update(batch)
    driver.steps_done += 1
    with clock.phase("sync"):
        await driver.sync_weights()
    summaries = [summary for shard in shards for summary in shard.summaries]
    responses = [summary.response_length for summary in summaries]
    point = ProbePoint(
        rollouts=len(summaries),
        prompt_tokens=sum(s.length for s in summaries) - sum(responses),
        response_tokens=sum(responses),
        longest=max(responses),
        generate=clock.seconds["generate"],
        score=clock.seconds["score"],
        update=clock.seconds["update"],
        sync=clock.seconds["sync"],
    )
    return point, shards
