"""Starts and ends actors. The one place where ``ray.remote`` is applied.

A scope holds what a stage needs; leaving it ends every actor of the stage and gives its resources back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors import requirements
from actors.answers import answers
from actors.cluster import living_nodes
from actors.generator import GeneratorActor
from actors.groups import (
    AdapterReference,
    CombinedRewards,
    GeneratorGroup,
    PpoTrainerGroup,
    ReferenceGroup,
    RewardSourceGroup,
    TrainerGroup,
)
from actors.placement import Bundle, assign
from actors.servers import ProcessRewardActor, ReferenceActor, RewardFunctionActor, RewardModelActor
from actors.trainer import TrainerActor
from actors.weight_sync import FleetWeightSync
from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.engines.environment import generator_environment, server_environment, trainer_environment
from rlhf_ray.errors import ConfigError, PlacementError
from rlhf_ray.records import AdaptersOff
from rlhf_ray.rewards.texts import PromptText
from rlhf_ray.roles import Reference
from rlhf_ray.stages.work import SequenceWork

CLOSING_S = 60.0  # for actors to give back what outlives a process; a busy machine needs many of them


class Fleet:
    """Everything that a run may start, on one cluster and one kind of device."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.config = config
        self.device = device

    def require_room(self) -> None:
        """Raise in no time what would stop a later stage: PlacementError, or ConfigError for a transport."""
        Scope(self.config, self.device).sync_backend()
        nodes = living_nodes()
        for wanted in requirements.stages(self.config, self.device).values():
            assign(wanted, nodes)

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Scope]:
        scope = Scope(self.config, self.device)
        try:
            yield scope
        finally:
            await scope.close()


class Scope:
    """The actors of one stage."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self._config = config
        self._device = device
        self._timeout_s = config.cluster.actor_timeout_s
        self._groups: list[PlacementGroup] = []
        self._actors: list[Any] = []

    # ---------------------------------------------------------------------------------------------------------- roles
    async def trainer(self, spec: Any) -> TrainerGroup:
        """The ranks of the trainer, with the models of ``spec`` loaded."""
        config = self._config.training
        environment = trainer_environment(self._device, config.threads_per_rank)
        ranks = await self._start(
            TrainerActor, {}, requirements.trainer(self._config, self._device), environment, "PACK"
        )
        group = TrainerGroup(ranks, config, device=self._device, timeout_s=self._timeout_s)
        await group.start(spec)
        return group

    async def ppo_trainer(
        self, spec: Any, *, demonstrations: Callable[[int], Sequence[Sequence[SequenceWork]]]
    ) -> PpoTrainerGroup:
        """The ranks that hold policy and critic."""
        group = await self.trainer(spec)
        return PpoTrainerGroup(group, self._config.ppo, seed=self._config.seed, demonstrations=demonstrations)

    async def generators(self, model_path: str) -> GeneratorGroup:
        """The vLLM engines, serving the checkpoint at ``model_path`` as version 0."""
        config = replace(self._config.generation, dtype=self._engine_dtype())
        backend = self.sync_backend()
        arguments = {"model_path": model_path, "config": config, "device": self._device, "backend": backend}
        environment = generator_environment(self._device, config, backend)
        wanted = requirements.generators(self._config, self._device)
        engines = await self._start(GeneratorActor, arguments, wanted, environment, "SPREAD")
        await self._answers("generator", "start", [engine.start.remote() for engine in engines])
        return GeneratorGroup(
            engines, shard_size=config.shard_size, max_running=config.max_num_seqs, timeout_s=self._timeout_s
        )

    async def reference(self, model_path: str) -> Reference:
        """The frozen reference: servers of its own, or the trainer with its adapters off."""
        if self._config.training.lora.enabled:
            return AdapterReference(ray.put(AdaptersOff()))
        exact = self._config.ppo.kl.estimator == "exact"
        return await self.reference_servers(model_path, self._config.ppo.temperature, whole_distributions=exact)

    async def reference_servers(
        self, model_path: str, temperature: float, *, whole_distributions: bool = False
    ) -> ReferenceGroup:
        """The frozen reference as servers of its own, for responses sampled at ``temperature``."""
        server = self._config.reference
        arguments = {
            "path": model_path,
            "model": self._config.model,
            "config": server,
            "device": self._device,
            "temperature": temperature,
        }
        wanted = requirements.reference_servers(self._config, self._device)
        environment = server_environment(self._device, server.threads_per_replica)
        replicas = await self._start(ReferenceActor, arguments, wanted, environment, "SPREAD")
        await self._answers("reference", "ready", [replica.ready.remote() for replica in replicas])
        return ReferenceGroup(replicas, timeout_s=self._timeout_s, whole_distributions=whole_distributions)

    async def rewards(self, *, own_model: str, tokenizer: str, prompts: Mapping[str, PromptText]) -> CombinedRewards:
        """Every source that ``rewards.sources`` asks for. ``prompts``, by prompt_id, are all that will be answered."""
        texts = ray.put(dict(prompts))
        used = self._config.rewards.used
        groups = await asyncio.gather(
            *(self._reward_source(name, source, own_model, tokenizer, texts) for name, source in used.items())
        )
        return CombinedRewards(dict(zip(used, groups, strict=True)), weights=self._config.rewards.weights)

    async def _reward_source(
        self, name: str, source: RewardSourceConfig, own_model: str, tokenizer: str, prompts: Any
    ) -> RewardSourceGroup:
        wanted = requirements.reward_source(self._config, self._device, name)
        model = self._config.model
        if source.kind == "model":
            arguments = {"path": source.path or own_model, "model": model}
            if "step_separator" not in source.arguments:
                return await self._reward_model(name, RewardModelActor, wanted, arguments)
            arguments |= {"tokenizer": tokenizer, **source.arguments}
            return await self._reward_model(name, ProcessRewardActor, wanted, arguments)
        return await self._reward_group(
            name,
            RewardFunctionActor,
            wanted,
            {"source": source, "prompts": prompts, "tokenizer": tokenizer, "model": model, "seed": self._config.seed},
            server_environment("cpu", 1),
        )

    async def _reward_model(
        self, name: str, actor_class: type, wanted: Sequence[Bundle], arguments: Mapping[str, Any]
    ) -> RewardSourceGroup:
        server = self._config.reward_server
        environment = server_environment(self._device, server.threads_per_replica)
        served = {**arguments, "config": server, "device": self._device}
        return await self._reward_group(name, actor_class, wanted, served, environment)

    async def _reward_group(
        self,
        name: str,
        actor_class: type,
        wanted: Sequence[Bundle],
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> RewardSourceGroup:
        replicas = await self._start(actor_class, arguments, wanted, environment, "SPREAD")
        who = f"reward source {name}"
        await self._answers(who, "ready", [replica.ready.remote() for replica in replicas])
        return RewardSourceGroup(who, replicas, timeout_s=self._timeout_s)

    async def weight_sync(
        self, trainer: PpoTrainerGroup, generators: GeneratorGroup, probe: Sequence[int]
    ) -> FleetWeightSync:
        """The channel from the trainer to the engines."""
        sync, dtype = self._config.weight_sync, self._wire_dtype()
        exact = dtype == self._config.training.dtype == "float32"
        channel = FleetWeightSync(
            ranks=trainer.group.ranks,
            engines=generators.engines,
            probe=probe,
            tolerance=sync.probe_tolerance if exact else sync.probe_tolerance_bfloat16,
            timeout_s=self._timeout_s,
        )
        await channel.open(
            backend=self.sync_backend(),
            dtype=dtype,
            bucket_bytes=sync.bucket_mb * 2**20,
            workers_per_engine=self._config.generation.tensor_parallel_size,
        )
        return channel

    async def fetch(self, ref: Any) -> Any:
        """Bring a block to this process."""
        return (await self._answers("object store", "fetch", [ref]))[0]

    async def put(self, block: Any) -> Any:
        """Lay a block of this process into the object store."""
        return ray.put(block)

    def sync_backend(self) -> str:
        wanted = self._config.weight_sync.transport
        if wanted == "auto" and self._device == "cuda":
            return "ipc" if self._config.training.gpus_per_rank < 1 else "nccl"
        if wanted == "auto":
            return "shared_memory"
        if (wanted == "shared_memory") != (self._device == "cpu"):
            raise ConfigError(
                "weight_sync.transport",
                wanted,
                f"does not work with device {self._device}",
                "use weight_sync.transport=auto",
            )
        return wanted

    def _engine_dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """What the engines compute in: the trainer's type unless another is asked for."""
        dtype = self._config.generation.dtype
        return self._config.training.dtype if dtype == "auto" else dtype

    def _wire_dtype(self) -> str:
        """What the engines compute in, so that no byte travels in vain."""
        dtype = self._engine_dtype()
        return self._config.training.dtype if dtype == "float16" else dtype

    # --------------------------------------------------------------------------------------------------- start and end
    async def _start(
        self,
        actor_class: type,
        arguments: Mapping[str, Any],
        wanted: Sequence[Bundle],
        environment: Mapping[str, str],
        strategy: str,
    ) -> list[Any]:
        """Start one actor a bundle, when the cluster has room for all of them."""
        group = await self._reserve(wanted, strategy)
        remote = ray.remote(actor_class)
        actors = [
            remote.options(
                num_cpus=bundle.cpus,
                num_gpus=bundle.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
                runtime_env={"env_vars": dict(environment)},
                max_concurrency=1000 if actor_class is GeneratorActor else 1,
            ).remote(**arguments)
            for index, bundle in enumerate(wanted)
        ]
        self._actors += actors
        return actors

    async def _reserve(self, wanted: Sequence[Bundle], strategy: str) -> PlacementGroup:
        assign(wanted, living_nodes())
        group = placement_group([b.resources or {"CPU": 0.001} for b in wanted], strategy=strategy)
        self._groups.append(group)
        limit = self._config.cluster.placement_timeout_s
        if not await asyncio.to_thread(group.wait, limit):
            available = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
            asked = "; ".join(str(bundle) for bundle in wanted)
            raise PlacementError(
                f"no room for {asked} within {limit:g} s (cluster.placement_timeout_s); free now: {available}. The "
                "cluster is large enough, so something else holds its resources: see `ray status`"
            )
        return group

    async def _answers(self, who: str, verb: str, refs: list[Any]) -> list[Any]:
        return await answers(refs, who=who, verb=verb, timeout_s=self._timeout_s)

    async def close(self) -> None:
        """End every actor, last started first, and give the resources back."""
        closing = [actor.close.remote() for actor in self._actors if hasattr(actor, "close")]
        if closing:
            await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=CLOSING_S)
        for actor in reversed(self._actors):
            ray.kill(actor)
        for group in self._groups:
            remove_placement_group(group)
        self._actors, self._groups = [], []
