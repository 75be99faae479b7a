"""A plan: what each role needs, how long a step takes, which split is best, what holds it back, what to change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.planning.flops import six_n_d
from rlhf_ray.planning.hardware import Accelerator, Efficiency
from rlhf_ray.planning.shapes import ModelShape, resolve_shape
from rlhf_ray.planning.splits import Candidate, configured, judge, search
from rlhf_ray.planning.step_time import concurrency, generation_time, wire_seconds
from rlhf_ray.planning.workload import Workload, workload_of

BASES = ("sft", "base")  # of reward_model.initialise_from: the policy's own shape
WORTH_OVERLAPPING = 1.15  # times faster, before a step off policy is worth its bias
WORTH_MOVING = 1.10  # times faster, before another split is worth the change


@dataclass(frozen=True)
class Plan:
    """``configured`` is the split of the configuration, ``best`` the one recommended for the devices that there are."""

    device: Accelerator
    devices: int
    nodes: int
    work: Workload
    configured: Candidate
    best: Candidate
    advice: tuple[str, ...]

    @property
    def schedule(self) -> str:
        """``ppo.schedule``: ``sync``, or ``one_step_off`` where a step off policy is worth it."""
        seconds = self.best.seconds
        worth = not self.best.split.shared and seconds.in_turn > WORTH_OVERLAPPING * seconds.overlapped
        return "one_step_off" if worth else "sync"

    @property
    def wire_seconds(self) -> float:
        return wire_seconds(self.work, self.best.split, self.device)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: bytes, seconds, counts."""
        shape = self.work.shape
        return {
            "gpu": asdict(self.device),
            "gpus": self.devices,
            "nodes": self.nodes,
            "parameters": shape.parameters,
            "training_flops_per_step": self.work.update_flops,
            "six_n_d": self.work.epochs * six_n_d(shape.parameters, self.work.tokens),
            "workload": {
                "rollouts": self.work.rollouts,
                "prompt_tokens": self.work.prompt,
                "response_tokens": self.work.response,
                "longest_response_tokens": self.work.longest,
            },
            "configured": candidate_dict(self.configured),
            "recommended": candidate_dict(self.best),
            "schedule": self.schedule,
            "bottleneck": self.best.seconds.bottleneck,
            "wire_seconds": self.wire_seconds,
            "advice": list(self.advice),
        }


def candidate_dict(candidate: Candidate) -> dict[str, Any]:
    seconds = candidate.seconds
    return {
        "split": asdict(candidate.split),
        "fits": candidate.fits,
        "too_large": list(candidate.short),
        "memory_bytes": {m.role: {**m.parts, "total": m.total, "on the host": m.host} for m in candidate.memory},
        "seconds": {**asdict(seconds), "in_turn": seconds.in_turn, "overlapped": seconds.overlapped},
    }


def make_plan(
    config: RunConfig,
    *,
    devices: int,
    nodes: int,
    device: Accelerator,
    prompt: int | None = None,
    response: int | None = None,
    efficiency: Efficiency | None = None,
) -> Plan:
    """Plan PPO of ``config`` on ``devices`` in all. Raises ConfigError for a model whose shape is not known."""
    efficiency = efficiency or Efficiency()
    device = replace(device, per_node=max(1, devices // nodes))
    shape = resolve_shape(config.model.path, config.model)
    work = workload_of(config, shape, reward_shape=_reward_shape(config, shape), prompt=prompt, response=response)
    candidates = search(config, work, devices=devices, nodes=nodes, device=device, efficiency=efficiency)
    asked = judge(config, work, configured(config, work, nodes), device, efficiency)
    best = candidates[0]
    near = asked.seconds.in_turn <= WORTH_MOVING * best.seconds.in_turn
    if asked.fits and asked.split.devices <= devices and near:
        best = asked
    advice = tuple(advise(config, work, asked, best, devices=devices, device=device, efficiency=efficiency))
    return Plan(device, devices, nodes, work, asked, best, advice)


def _reward_shape(config: RunConfig, policy: ModelShape) -> ModelShape:
    source = config.reward_model.initialise_from
    if source in BASES:
        return policy
    return resolve_shape(source, config.model, field="reward_model.initialise_from")


# --------------------------------------------------------------------------------------------------------------- advice
def advise(
    config: RunConfig,
    work: Workload,
    asked: Candidate,
    best: Candidate,
    *,
    devices: int,
    device: Accelerator,
    efficiency: Efficiency,
) -> list[str]:
    """What to change, each with the setting; nothing where all is well."""
    said = []
    if asked.split.devices > devices:
        said.append(f"the configuration asks for {asked.split.devices} GPUs, and there are {devices}")
    if not best.fits:
        remedy = remedy_for(config, work, best, device, efficiency)
        return [*said, f"no split fits into {device.memory / 1e9:.0f} GB ({', '.join(best.short)}): {remedy}"]
    if not asked.fits:
        said.append(f"as configured it does not fit ({', '.join(asked.short)}): use the recommended split")
    elif asked.seconds.in_turn > WORTH_MOVING * best.seconds.in_turn:
        said.append(f"the recommended split is {asked.seconds.in_turn / best.seconds.in_turn:.1f} times as fast")
    if best.split.shared and not asked.split.shared:
        engine = next(memory.total for memory in best.memory if memory.role == "generator") / device.memory
        said.append(
            "share the GPUs: training.gpus_per_rank=0.5 generation.gpus_per_engine=0.3 reference.gpus_per_replica=0.1 "
            f"reward_server.gpus_per_replica=0.1 generation.gpu_memory_utilization={engine:.2f}"
        )
    seconds = best.seconds
    if seconds.in_turn > WORTH_OVERLAPPING * seconds.overlapped and not best.split.shared:
        said.append(
            f"generators and trainer wait for each other: with ppo.schedule=one_step_off a step would take "
            f"{seconds.overlapped:.3g} s instead of {seconds.in_turn:.3g}, at a staleness of 1"
        )
    return said + _for_bottleneck(work, best, device, efficiency)


def _for_bottleneck(work: Workload, best: Candidate, device: Accelerator, efficiency: Efficiency) -> list[str]:
    name, split = best.seconds.bottleneck, best.split
    if name == "generate":
        cache = next(m.parts["KV cache"] for m in best.memory if m.role == "generator")
        found = generation_time(work, split, device, efficiency, cache)
        held = concurrency(work, split, cache)
        limit = f"an engine decodes {found.batch:.0f} sequences at once, bound by {found.bound}"
        if found.bound == "compute":
            return [f"{limit}: more engines, or ppo.max_response_tokens lower"]
        if held < work.rollouts / split.engines:
            return [f"{limit}: raise generation.max_num_seqs ({work.max_num_seqs}) or the cache, which holds {held}"]
        return [f"{limit}: more rollouts a step (ppo.rollouts_per_step) cost little, the longest response sets the end"]
    if name == "update":
        if work.training.gradient_checkpointing:
            return ["training recomputes every forward pass: training.gradient_checkpointing=false where memory allows"]
        return ["training is bound by arithmetic: fewer ppo.num_epochs, or more ranks"]
    if name == "sync":
        return ["weights travel longer than anything else: adapters (training.lora.rank) or larger steps"]
    return ["scoring or old log-probabilities dominate: more replicas (reference.num_replicas), or more ranks"]


def remedy_for(
    config: RunConfig, work: Workload, candidate: Candidate, device: Accelerator, efficiency: Efficiency
) -> str:
    """The first change of training settings with which ``candidate``'s split fits."""
    tried: list[tuple[str, TrainingConfig]] = []
    training = work.training
    tried += [(f"training.zero_stage={stage}", replace(training, zero_stage=stage)) for stage in (1, 2, 3)]
    tried.append(("training.gradient_checkpointing=true", replace(training, gradient_checkpointing=True)))
    least = replace(training, zero_stage=3, gradient_checkpointing=True)
    tried.append(("training.zero_stage=3 training.gradient_checkpointing=true", least))
    tried.append(
        (
            "training.zero_stage=3 training.offload_optimizer=true training.gradient_checkpointing=true",
            replace(least, offload_optimizer=True),
        )
    )
    for words, changed in tried:
        other = replace(work, training=changed)
        if changed != training and judge(config, other, candidate.split, device, efficiency).fits:
            return f"set {words}"
    return "use adapters (training.lora.rank=64), a smaller model, or more devices"
