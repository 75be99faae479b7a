"""The actors of one stage: there when they are needed, ended or left to the next stage with the scope."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import ray

from actors import requirements
from actors.answers import answers
from actors.bookkeeper import Bookkeeper
from actors.cluster import living_nodes
from actors.crew import Crew
from actors.generator import GeneratorActor
from actors.generators import GeneratorGroup
from actors.groups import (
    AdapterReference,
    CombinedRewards,
    PpoTrainerGroup,
    ReferenceGroup,
    RewardSourceGroup,
    TrainerGroup,
)
from actors.lasting import LastingFit, LastingTrainer, Restart
from actors.messages import say
from actors.monitor import Monitor
from actors.node_groups import pinned
from actors.placement import Bundle, assign
from actors.pool import Kind, Pool
from actors.replicas import Replicas
from actors.room import reserve
from actors.servers import ProcessRewardActor, ReferenceActor, RewardFunctionActor, RewardModelActor
from actors.solo import Solo
from actors.staff import Staff
from actors.supplier import CONCURRENCY, GeneratorSupplier
from actors.trainer import TrainerActor
from actors.transport import engine_dtype, transport, wire_dtype
from actors.weight_sync import FleetWeightSync
from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.engines.environment import generator_environment, server_environment, trainer_environment
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.records import AdaptersOff
from rlhf_ray.rewards.texts import PromptText
from rlhf_ray.roles import Reference
from rlhf_ray.stages.work import SequenceWork
from rlhf_ray.supervision.budget import RestartBudget, RestartLimit
from rlhf_ray.supervision.journal import Journal
from rlhf_ray.supervision.sizing import Sizer, SizingRule

CLOSING_S = 60.0  # for actors to give back what outlives a process; a busy machine needs many of them


class Scope:
    """The actors of one stage. ``monitor`` hears them; those that the stage leaves go to ``pool``, or come from it."""

    def __init__(self, config: RunConfig, device: str, *, monitor: Monitor, pool: Pool, books: Bookkeeper) -> None:
        self._config = config
        self._device = device
        self.monitor = monitor
        self._pool = pool
        self._books = books
        self._timeout_s = config.cluster.actor_timeout_s
        self._crews: list[Crew] = []
        self.generator_groups: list[GeneratorGroup] = []
        self.server_groups: list[tuple[str, Replicas]] = []  # by role

    # ---------------------------------------------------------------------------------------------------------- roles
    async def trainer(self, spec: Any) -> LastingFit:
        """The ranks of the trainer, with the models of ``spec`` loaded; where one is lost, others in their places."""
        group, restart = await self._trainer(spec)
        return LastingFit(
            group, restart=restart, budget=self._budget(), journal=self._journal(), recovering=self._recovering
        )

    async def ppo_trainer(
        self, spec: Any, *, demonstrations: Callable[[int], Sequence[Sequence[SequenceWork]]]
    ) -> LastingTrainer:
        """The ranks that hold policy and critic, likewise."""
        group, restart = await self._trainer(spec)
        trainer = PpoTrainerGroup(group, self._config.ppo, seed=self._config.seed, demonstrations=demonstrations)
        return LastingTrainer(
            trainer, restart=restart, budget=self._budget(), journal=self._journal(), recovering=self._recovering
        )

    def _recovering(self) -> AbstractContextManager[None]:
        return self._books.during(Account.RESTART, "trainer")

    async def _trainer(self, spec: Any) -> tuple[TrainerGroup, Restart]:
        config, crew = self._config.training, await self._trainer_crew()
        group = TrainerGroup(crew.actors, config, device=self._device, timeout_s=self._timeout_s)

        async def restart(reason: str) -> None:
            group.ranks = await crew.replace_all(reason)
            await group.start(spec)

        await group.start(spec)
        return group, restart

    def _journal(self) -> Journal[Any]:
        return Journal(self._config.faults.max_kept_steps)

    async def generators(self, model_path: str) -> GeneratorGroup:
        """The vLLM engines, serving the checkpoint at ``model_path`` as version 0."""
        shares = self._config.generation.sleeps or self._config.ppo.schedule == "colocate"
        config = replace(self._config.generation, dtype=engine_dtype(self._config), sleeps=shares)
        nodes = living_nodes()
        wanted = pinned(requirements.generators(self._config, self._device), nodes)
        assign(wanted, nodes)
        backend = transport(self._config, self._device)
        solo = self._solo(
            GeneratorActor,
            wanted[0],
            generator_environment(self._device, config, backend),
            max_concurrency=CONCURRENCY,
        )
        supplier = GeneratorSupplier(
            solo,
            {"config": config, "device": self._device, "backend": backend},
            first_room_s=self._config.cluster.placement_timeout_s,
            timeout_s=self._timeout_s,
        )
        first = await supplier.start_all(len(wanted), model_path)
        group = GeneratorGroup(
            first,
            shard_size=config.shard_size,
            max_running=config.max_num_seqs,
            timeout_s=self._timeout_s,
            supplier=supplier,
            budget=self._budget(),
            sizer=self._sizer(),
            warn=say,
        )
        group.members.model_path = model_path
        self.generator_groups.append(group)
        return group

    def _sizer(self) -> Sizer | None:
        config = self._config.generation
        if config.scale == "fixed":
            return None
        return Sizer(SizingRule(config.min_engines, config.most_engines), time.monotonic)

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
        replicas = await self._replicas("reference", "reference", ReferenceActor, arguments, wanted, environment)
        return ReferenceGroup(replicas, whole_distributions=whole_distributions)

    async def rewards(
        self, *, own_models: Sequence[str], tokenizer: str, prompts: Mapping[str, PromptText]
    ) -> CombinedRewards:
        """Every source that ``rewards.sources`` asks for. ``prompts``, by prompt_id, are all that will be answered."""
        texts = ray.put(dict(prompts))
        used = self._config.rewards.used
        groups = await asyncio.gather(
            *(self._reward_source(name, source, own_models, tokenizer, texts) for name, source in used.items())
        )
        return CombinedRewards(dict(zip(used, groups, strict=True)), weights=self._config.rewards.weights)

    async def _reward_source(
        self, name: str, source: RewardSourceConfig, own_models: Sequence[str], tokenizer: str, prompts: Any
    ) -> RewardSourceGroup:
        wanted = requirements.reward_source(self._config, self._device, name)
        model = self._config.model
        if source.kind == "model":
            paths = [source.path] if source.path else list(own_models)
            if separator := self._config.step_separator(source):
                steps = {"path": paths[0], "model": model, "tokenizer": tokenizer, "step_separator": separator}
                return await self._reward_model(name, ProcessRewardActor, wanted, steps)
            penalty = self._config.rewards.uncertainty_penalty if source.is_own_model else 0.0
            whole = {"paths": paths, "model": model, "uncertainty_penalty": penalty}
            return await self._reward_model(name, RewardModelActor, wanted, whole)
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
        role = "reward" if actor_class is RewardFunctionActor else "reward_model"
        who = f"reward source {name}"
        return RewardSourceGroup(await self._replicas(role, who, actor_class, arguments, wanted, environment))

    async def _replicas(
        self,
        role: str,
        who: str,
        actor_class: type,
        arguments: Mapping[str, Any],
        wanted: Sequence[Bundle],
        environment: Mapping[str, str],
    ) -> Replicas:
        """The servers once they are ready, each of which is replaced when it dies."""
        nodes = living_nodes()
        wanted = pinned(wanted, nodes)
        assign(wanted, nodes)
        solo = self._solo(actor_class, wanted[0], environment, max_concurrency=1)
        first_room_s = self._config.cluster.placement_timeout_s
        staff = Staff(solo, arguments, who, first_room_s=first_room_s, timeout_s=self._timeout_s)
        replicas = Replicas(
            who,
            await staff.start_all(len(wanted)),
            timeout_s=self._timeout_s,
            replace=staff.replace,
            add=staff.add,
            end=staff.end,
            budget=self._budget(),
            max_deaths_per_batch=self._config.faults.max_deaths_per_batch,
        )
        self.server_groups.append((role, replicas))
        return replicas

    def resize(self, role: str, count: int) -> None:
        """Have ``count`` actors of a role from now on."""
        if role == "generator":
            for group in self.generator_groups:
                group.resize(count)
        for served, replicas in self.server_groups:
            if served == role:
                replicas.resize(count)

    def snapshot(self) -> list[dict[str, Any]]:
        """The generators and servers that there are now, for people."""
        generators = [group.snapshot() for group in self.generator_groups]
        return [*generators, *(replicas.snapshot() for _, replicas in self.server_groups)]

    def _budget(self) -> RestartBudget:
        faults = self._config.faults
        limit = RestartLimit(faults.max_restarts, faults.restarts_within_s)
        return RestartBudget(infrastructure=limit, data=limit, clock=time.monotonic)

    async def weight_sync(
        self, trainer: LastingTrainer | LastingFit, generators: GeneratorGroup, probe: Sequence[int]
    ) -> FleetWeightSync:
        """The channel from the trainer to the engines."""
        sync, dtype = self._config.weight_sync, wire_dtype(self._config)
        exact = dtype == self._config.training.dtype == "float32"
        channel = FleetWeightSync(
            trainer=trainer,
            generators=generators,
            probe=probe,
            tolerance=sync.probe_tolerance if exact else sync.probe_tolerance_bfloat16,
            timeout_s=self._timeout_s,
        )
        await channel.open(
            backend=transport(self._config, self._device),
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

    # --------------------------------------------------------------------------------------------------- start and end
    def _solo(
        self,
        actor_class: type,
        bundle: Bundle,
        environment: Mapping[str, str],
        *,
        max_concurrency: int,
    ) -> Solo:
        """What starts actors that come and go one by one."""
        return Solo(
            actor_class=actor_class,
            bundle=bundle,
            environment=environment,
            monitor=self.monitor,
            pool=self._pool,
            books=self._books,
            max_concurrency=max_concurrency,
            room_s=self._config.cluster.wait_for_room_s,
            on_start=self._crews.append,
            on_end=self._crews.remove,
        )

    async def _trainer_crew(self) -> Crew:
        """One actor a rank, when the cluster has room for all of them."""
        ordered, wanted = self._books.now(), requirements.trainer(self._config, self._device)
        environment = trainer_environment(self._device, self._config.training.threads_per_rank)
        if (left := await self._pool.take(Kind(TrainerActor, environment, wanted))) is not None:
            self._crews.append(left)
            return left
        crew = Crew(
            actor_class=TrainerActor,
            environment=environment,
            wanted=wanted,
            group=await reserve(wanted, self._config.cluster.placement_timeout_s, self._pool.end_all),
            max_concurrency=1,
            wait_for_room_s=self._config.cluster.wait_for_room_s,
            monitor=self.monitor,
            books=self._books,
        )
        self._crews.append(crew)
        for place in range(len(wanted)):
            crew.start(place, ordered=ordered)
        return crew

    async def _answers(self, who: str, verb: str, refs: list[Any]) -> list[Any]:
        return await answers(refs, who=who, verb=verb, timeout_s=self._timeout_s)

    async def close(self, *, leave: bool) -> None:
        """Give the resources back; with ``leave``, actors that can serve another stage stay in the pool until then."""
        await asyncio.gather(*(group.close() for group in self.generator_groups))
        await asyncio.gather(*(replicas.close() for _, replicas in self.server_groups))
        crews, self._crews = self._crews, []
        if leave:
            await asyncio.gather(*(self._pool.give(crew, CLOSING_S) for crew in crews))
            return
        await asyncio.gather(*(crew.close(CLOSING_S) for crew in crews))
        for crew in reversed(crews):  # last started first
            crew.end_all()
