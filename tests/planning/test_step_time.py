"""Seconds of a step on a machine of round numbers, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.planning.flops import forward_flops
from rlhf_ray.planning.step_time import (
    PhaseSeconds,
    Split,
    collective_time,
    concurrency,
    generation_time,
    phase_seconds,
    sync_time,
    update_time,
    wire_seconds,
)
from rlhf_ray.planning.workload import workload_of
from tests.planning.made_up import PERFECT, ROUND, SHAPE, WORK

ALONE = Split(ranks=1, engines=1, tensor_parallel=1, reference=1, reward=1)


def test_decoding_is_bound_by_reading_the_weights_for_few_sequences() -> None:
    found = generation_time(WORK, ALONE, ROUND, PERFECT, kv_bytes=1e9)
    steps = 20  # the longest response: four of ten tokens fill 40 / 20 = 2 places on average
    read = 4 * SHAPE.parameters + 2 * (6 + 5) * SHAPE.kv_bytes_per_token(4)
    assert found.batch == 2
    assert found.bound == "bandwidth"
    assert found.decode == pytest.approx(steps * read / 1e6)
    assert found.prefill == pytest.approx(4 * forward_flops(SHAPE, prompt=6, response=0) / 1e9)


def test_a_fast_memory_leaves_decoding_to_arithmetic_and_a_fast_device_to_the_host() -> None:
    fast = replace(ROUND, bandwidth=1e15)
    assert generation_time(WORK, ALONE, replace(fast, flops=1e3), PERFECT, 1e9).bound == "compute"
    slow_host = replace(PERFECT, decode_step_s=1.0)
    assert generation_time(WORK, ALONE, fast, slow_host, 1e9).decode == 20.0


def test_a_small_cache_holds_fewer_sequences_and_takes_longer() -> None:
    one = SHAPE.kv_bytes_per_token(4) * (6 + 20)
    assert concurrency(WORK, ALONE, one * 1.5) == 1
    assert concurrency(WORK, ALONE, one * 100) == 4
    assert (
        generation_time(WORK, ALONE, ROUND, PERFECT, one * 1.5).decode
        > generation_time(WORK, ALONE, ROUND, PERFECT, one * 100).decode
    )


def test_an_update_is_its_operations_over_the_rate_of_all_ranks() -> None:
    two = replace(ALONE, ranks=2)
    policy = 3 * 4 * forward_flops(SHAPE, prompt=6, response=10)
    critic = 3 * 4 * forward_flops(SHAPE, prompt=6, response=10, head=False)
    assert WORK.update_flops == 2 * (policy + critic)  # two epochs
    assert update_time(WORK, ALONE, ROUND, PERFECT) == pytest.approx(WORK.update_flops / 1e9)
    traffic = 2 * 2 * collective_time(WORK, two, ROUND, PERFECT, micro=1)
    assert update_time(WORK, two, ROUND, PERFECT) == pytest.approx(WORK.update_flops / 2e9 + traffic)


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 2), (2, 4), (3, 9)])
def test_stage_three_sends_half_as_much_again_and_once_a_micro_batch(stage: int, times: int) -> None:
    work = replace(WORK, critic=False, training=replace(WORK.training, zero_stage=stage))
    size = 4 * SHAPE.parameters
    found = collective_time(work, replace(ALONE, ranks=4), ROUND, PERFECT, micro=3)
    assert found == pytest.approx(times * size * 0.75 / ROUND.link)


def test_the_wire_is_the_floor_of_a_sync_and_slower_between_nodes() -> None:
    inside, across = ALONE, replace(ALONE, nodes=2)
    assert wire_seconds(WORK, inside, ROUND) == pytest.approx(4 * SHAPE.parameters / ROUND.link)
    assert wire_seconds(WORK, across, ROUND) == pytest.approx(4 * SHAPE.parameters / ROUND.network)
    assert sync_time(WORK, inside, ROUND, PERFECT) > wire_seconds(WORK, inside, ROUND)


def test_scoring_on_servers_of_its_own_hides_behind_generation() -> None:
    apart = phase_seconds(WORK, ALONE, ROUND, PERFECT, 1e9)
    shared = phase_seconds(WORK, replace(ALONE, shared=True), ROUND, PERFECT, 1e9)
    assert shared.score == pytest.approx(WORK.scoring_flops / 1e9)
    assert apart.score < shared.score


def test_overlapped_takes_the_longer_side() -> None:
    seconds = PhaseSeconds(generate=5.0, score=1.0, old_logprobs=1.0, update=3.0, sync=0.5)
    assert seconds.in_turn == 10.5
    assert seconds.overlapped == 6.5
    assert seconds.bottleneck == "generate"


def test_the_workload_is_read_off_the_configuration() -> None:
    config = load_config("configs/quickstart.yaml")
    work = workload_of(config, SHAPE)
    assert (work.rollouts, work.epochs, work.minibatches, work.longest) == (128, 2, 2, 40)
    assert (work.prompt, work.response) == (44, 24)
    assert work.critic
    assert work.reference_server
    lora = load_config("configs/quickstart.yaml", ["training.lora.rank=8"])
    assert workload_of(lora, SHAPE).old_logprobs_flops > work.old_logprobs_flops  # the reference moves to the trainer
    assert workload_of(lora, SHAPE).scoring_flops < work.scoring_flops
