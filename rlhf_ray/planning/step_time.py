"""Seconds of one PPO step by phase from stated rates: a roofline for each role."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from rlhf_ray.planning.flops import decode_flops, forward_flops
from rlhf_ray.planning.hardware import Accelerator, Efficiency
from rlhf_ray.planning.memory import BYTES
from rlhf_ray.planning.workload import Workload


@dataclass(frozen=True)
class Split:
    """Devices by role. ``engines`` of ``tensor_parallel`` each; servers of one device a replica."""

    ranks: int
    engines: int
    tensor_parallel: int
    reference: int
    reward: int
    nodes: int = 1
    shared: bool = False  # all roles on the same devices, in turn

    @property
    def devices(self) -> int:
        if self.shared:
            return max(self.ranks, self.engines * self.tensor_parallel)
        return self.ranks + self.engines * self.tensor_parallel + self.reference + self.reward


@dataclass(frozen=True)
class PhaseSeconds:
    """One step, phases in turn. ``score`` is what is left of scoring when the last response is there."""

    generate: float
    score: float
    old_logprobs: float
    update: float
    sync: float

    @property
    def in_turn(self) -> float:
        return self.rollouts + self.training + self.sync

    @property
    def rollouts(self) -> float:
        return self.generate + self.score

    @property
    def training(self) -> float:
        return self.old_logprobs + self.update

    @property
    def overlapped(self) -> float:
        """One step off policy: rollouts of the next step while this one is trained on."""
        return max(self.rollouts, self.training) + self.sync

    @property
    def bottleneck(self) -> str:
        return max(fields(self), key=lambda f: getattr(self, f.name)).name


@dataclass(frozen=True)
class Generation:
    """How an engine spends a step. ``batch``: the mean number of sequences it decodes at once."""

    prefill: float
    decode: float
    batch: float
    bound: str  # by which rate decoding is bound: "bandwidth", "compute" or "host"

    @property
    def seconds(self) -> float:
        return self.prefill + self.decode


def concurrency(work: Workload, split: Split, kv_bytes: float) -> int:
    """Sequences that an engine decodes at once: as many as it has, as it may, and as its cache holds."""
    each = work.shape.kv_bytes_per_token(BYTES[work.engine_dtype]) * (work.prompt + work.longest)
    fits = int(kv_bytes * split.tensor_parallel // each)
    return max(1, min(math.ceil(work.rollouts / split.engines), work.max_num_seqs, fits))


def generation_time(
    work: Workload, split: Split, device: Accelerator, efficiency: Efficiency, kv_bytes: float
) -> Generation:
    """Prefill is bound by arithmetic, decoding by reading the weights and the cache once a step of the engine."""
    own = math.ceil(work.rollouts / split.engines)
    flops = device.flops * split.tensor_parallel
    prompts = own * forward_flops(work.shape, prompt=work.prompt, response=0, head=False)
    tokens = own * work.response
    steps = max(work.longest, math.ceil(tokens / concurrency(work, split, kv_bytes)))
    batch, context = tokens / steps, work.prompt + work.response / 2
    width = BYTES[work.engine_dtype]
    read = work.shape.parameters * width + batch * context * work.shape.kv_bytes_per_token(width)
    bounds = {
        "bandwidth": read / (device.bandwidth * split.tensor_parallel * efficiency.decode_bandwidth),
        "compute": batch * decode_flops(work.shape, context) / (flops * efficiency.forward),
    }
    bound = max(bounds, key=lambda name: bounds[name])
    if efficiency.decode_step_s > bounds[bound]:
        bound, bounds["host"] = "host", efficiency.decode_step_s
    return Generation(prompts / (flops * efficiency.forward), steps * bounds[bound], batch, bound)


def scoring_time(work: Workload, split: Split, device: Accelerator, efficiency: Efficiency) -> float:
    """Reference and reward model at once, each on its replicas."""
    rate = device.flops * efficiency.forward
    reference = work.reference_flops / (rate * max(1, split.reference)) if work.reference_server else 0.0
    return max(reference, work.reward_flops / (rate * max(1, split.reward)))


def collective_time(work: Workload, split: Split, device: Accelerator, efficiency: Efficiency, micro: int) -> float:
    """ZeRO's traffic of one minibatch (section 7 there): 2 x weights for stages 0 to 2, 3 x for stage 3.

    Under stages 2 and 3 gradients are reduced after every micro-batch, under 3 weights gathered for each pass of it.
    """
    if split.ranks == 1:
        return 0.0
    training, shape = work.training, work.shape
    size = shape.parameters * BYTES[training.dtype] * (2 if work.critic else 1)
    reduced = size if not training.lora.enabled else 0.0
    stage = training.zero_stage
    sent = {2: micro * reduced + size, 3: micro * (2 * size + reduced)}.get(stage, 2 * reduced)
    link = device.link if split.ranks <= device.per_node else device.network
    return sent * (split.ranks - 1) / split.ranks / (link * efficiency.wire)


def offload_time(work: Workload, split: Split, device: Accelerator) -> float:
    """One optimizer step on the host: gradients down, weights up, 28 bytes a parameter through its memory."""
    if not work.training.offload_optimizer:
        return 0.0
    own = work.shape.parameters * (2 if work.critic else 1) / split.ranks
    return own * 4 / device.host_link + own * 28 / 20e9  # a rank's share of a server's memory bandwidth


def update_time(work: Workload, split: Split, device: Accelerator, efficiency: Efficiency) -> float:
    """All epochs. Under stage 3 gathering runs beside arithmetic; the other stages reduce after it."""
    arithmetic = work.update_flops / (split.ranks * device.flops * efficiency.training)
    updates = work.epochs * work.minibatches
    tokens = work.tokens / work.minibatches / split.ranks
    micro = math.ceil(tokens / work.training.max_tokens_per_micro_batch)
    traffic = updates * collective_time(work, split, device, efficiency, micro)
    together = max(arithmetic, traffic) if work.training.zero_stage == 3 else arithmetic + traffic
    return together + updates * offload_time(work, split, device)


def wire_seconds(work: Workload, split: Split, device: Accelerator) -> float:
    """The least that a weight sync can take: every engine's device receives its share at the link's stated rate."""
    inside = split.nodes == 1 and split.devices <= device.per_node
    return work.wire_bytes / (device.link if inside else device.network)


def sync_time(work: Workload, split: Split, device: Accelerator, efficiency: Efficiency) -> float:
    """The wire at its efficiency, or within one device a copy; then loading, which reads and writes memory once."""
    load = 2 * work.wire_bytes / split.tensor_parallel / (device.bandwidth * efficiency.decode_bandwidth)
    return load if split.shared else wire_seconds(work, split, device) / efficiency.wire + load


def phase_seconds(
    work: Workload, split: Split, device: Accelerator, efficiency: Efficiency, kv_bytes: float
) -> PhaseSeconds:
    """One step. Scoring begins with the first finished responses; on servers of its own it hides behind generation."""
    generate = generation_time(work, split, device, efficiency, kv_bytes).seconds
    scoring = scoring_time(work, split, device, efficiency)
    if split.shared:
        scoring = work.scoring_flops / (device.flops * efficiency.forward * split.devices)
        score = scoring
    else:
        score = max(scoring - generate, scoring * min(1.0, 32 / work.rollouts))
    return PhaseSeconds(
        generate=generate,
        score=score,
        old_logprobs=work.old_logprobs_flops / (split.ranks * device.flops * efficiency.forward),
        update=update_time(work, split, device, efficiency),
        sync=sync_time(work, split, device, efficiency),
    )
