"""What a step has computed and moved, counted from lengths alone, and how much of a device's rates that is.

Operations are those that the models need (flops.py): recomputing activations is no progress and counts nothing, as in
the model FLOPs utilisation of PaLM (Chowdhery et al. 2022, appendix B). Bytes are the least that decoding must read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlhf_ray.config.run import RunConfig
from rlhf_ray.planning.flops import forward_flops, training_flops
from rlhf_ray.planning.hardware import Accelerator
from rlhf_ray.planning.memory import BYTES
from rlhf_ray.planning.shapes import ModelShape
from rlhf_ray.planning.workload import Workload, workload_of

Lengths: TypeAlias = Sequence[tuple[int, int]]
"""Tokens of prompt and response of each rollout."""


@dataclass(frozen=True)
class StepWork:
    """Counts the work of PPO's steps. Policy, critic and reference have one shape; ``rewards`` have their own."""

    plan: Workload
    engines: int
    rewards: tuple[ModelShape, ...]

    @classmethod
    def of(cls, config: RunConfig, shape: ModelShape, rewards: Sequence[ModelShape]) -> StepWork:
        return cls(workload_of(config, shape), config.generation.num_engines, tuple(rewards))

    def count(self, *, sampled: Lengths, trained: Lengths) -> dict[str, float]:
        """``work/*`` of a step. All that was sampled was scored; what is trained on may be less."""
        plan, shape = self.plan, self.plan.shape
        policy, scalar = _forward(shape, trained), _forward(shape, trained, head=False)
        once = {"checkpointing": False, "frozen": plan.training.lora.enabled}
        scored = _forward(shape, sampled) if plan.reference_server else 0.0
        scored += sum(_forward(each, sampled, head=False) for each in self.rewards)
        forwards = policy * (1 if plan.reference_server else 2) + (scalar if plan.critic else 0.0)
        return {
            "work/scoring_flops": scored,
            "work/forward_flops": forwards,
            "work/policy_flops": plan.epochs * training_flops(policy, **once),
            "work/critic_flops": plan.epochs * training_flops(scalar, **once) if plan.critic else 0.0,
            "work/decode_bytes": self._decode_bytes(sampled),
        }

    def _decode_bytes(self, lengths: Lengths) -> float:
        """Every engine reads its weights once for each of its steps, and a token reads the cache of all before it."""
        responses = [response for _, response in lengths]
        if not responses:
            return 0.0
        size = BYTES[self.plan.engine_dtype]
        steps = max(*responses, math.ceil(sum(responses) / self.engines / self.plan.max_num_seqs))
        before = sum(p * r + r * (r - 1) / 2 for p, r in lengths)
        cache = before * self.plan.shape.kv_bytes_per_token(size)
        return self.engines * steps * float(self.plan.shape.parameters * size) + cache


def _forward(shape: ModelShape, lengths: Lengths, *, head: bool = True) -> float:
    return sum(forward_flops(shape, prompt=prompt, response=response, head=head) for prompt, response in lengths)


def rates_of(metrics: Mapping[str, float], config: RunConfig, device: Accelerator | None) -> dict[str, float]:
    """``time/*`` rates of a step from what it moved and computed and the seconds of its phases.

    Shares of a device's rates are told where ``device`` states them, and for arithmetic only in bfloat16, which its
    rate of operations is for.
    """
    found = {}
    if metrics.get("ppo/sync_bytes") and metrics.get("time/sync"):
        found["time/sync_bytes_per_second"] = metrics["ppo/sync_bytes"] / metrics["time/sync"]
    if "work/policy_flops" not in metrics:
        return found
    if "ppo/kl_per_response" in metrics:  # the step was not skipped
        flops = sum(metrics[f"work/{part}_flops"] for part in ("forward", "policy", "critic"))
        found["time/update_flops_per_second"] = rate = flops / metrics["time/update"]
        if device is not None and config.training.dtype == "bfloat16":
            found["time/update_mfu"] = rate / (device.flops * config.training.num_ranks)
    found["time/decode_bytes_per_second"] = rate = metrics["work/decode_bytes"] / metrics["time/generate"]
    if device is not None:
        devices = config.generation.num_engines * config.generation.tensor_parallel_size
        found["time/decode_bandwidth_fraction"] = rate / (device.bandwidth * devices)
    return found
