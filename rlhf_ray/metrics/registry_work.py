"""What a step computes and moves, and how fast: name, unit, definition, and which direction is good."""

from __future__ import annotations

from rlhf_ray.metrics.registry_suites import Row

# Counted from lengths and the model's shape (rlhf_ray/planning/achieved.py), whatever the hardware.
WORK: tuple[Row, ...] = (
    ("work/scoring_flops", "FLOP", "Operations of reference and reward model over the step's rollouts.", ""),
    ("work/forward_flops", "FLOP", "Operations of the trainer's old log-probabilities and values.", ""),
    ("work/policy_flops", "FLOP", "Operations of the policy's updates, all epochs; recomputation counts nothing.", ""),
    ("work/critic_flops", "FLOP", "Operations of the critic's updates, all epochs; recomputation counts nothing.", ""),
    (
        "work/decode_bytes",
        "bytes",
        "The least that sampling must read: weights once for each step of an engine, and the cache before each token.",
        "",
    ),
)
RATES: tuple[Row, ...] = (
    ("time/sync_bytes_per_second", "bytes/s", "Bytes of weights sent to one generator over time/sync.", "higher"),
    (
        "time/update_flops_per_second",
        "FLOP/s",
        "Operations of forwards and updates of policy and critic over time/update, all ranks together.",
        "higher",
    ),
    (
        "time/update_mfu",
        "fraction",
        "time/update_flops_per_second over what all ranks' GPUs could do in bfloat16 as their maker states it.",
        "higher",
    ),
    (
        "time/decode_bytes_per_second",
        "bytes/s",
        "work/decode_bytes over time/generate: the least that was read, prompts and waiting included in the time.",
        "higher",
    ),
    (
        "time/decode_bandwidth_fraction",
        "fraction",
        "time/decode_bytes_per_second over the memory bandwidth of all engines' GPUs as their maker states it.",
        "higher",
    ),
)
