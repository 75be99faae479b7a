"""A small model, a step of four rollouts, and a machine of round numbers."""

from __future__ import annotations

from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.planning.hardware import Accelerator, Efficiency
from rlhf_ray.planning.shapes import ModelShape
from rlhf_ray.planning.workload import Workload

SHAPE = ModelShape(
    hidden=8, intermediate=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4, vocab=32, tied=True
)
ROUND = Accelerator("round", flops=1e9, memory=1e10, bandwidth=1e6, link=1e5, network=1e4)
PERFECT = Efficiency(training=1.0, forward=1.0, decode_bandwidth=1.0, wire=1.0, decode_step_s=0.0)
WORK = Workload(
    shape=SHAPE,
    training=TrainingConfig(),
    rollouts=4,
    prompt=6,
    response=10,
    longest=20,
    epochs=2,
    minibatches=2,
    critic=True,
    reference_server=True,
    reward_shape=SHAPE,
    engine_dtype="float32",
    max_num_seqs=256,
    max_length=64,
)
