"""What a step is counted to have computed and read, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.planning.achieved import StepWork, rates_of
from rlhf_ray.planning.flops import forward_flops
from rlhf_ray.planning.hardware import ACCELERATORS, accelerator_of_ray
from tests.planning.made_up import ROUND, SHAPE, WORK

LENGTHS = [(6, 10), (2, 4)]
POLICY = sum(forward_flops(SHAPE, prompt=p, response=r) for p, r in LENGTHS)
SCALAR = sum(forward_flops(SHAPE, prompt=p, response=r, head=False) for p, r in LENGTHS)


def test_operations_are_those_of_the_forwards_and_three_times_that_for_each_epoch() -> None:
    found = StepWork(WORK, 1, (SHAPE, SHAPE)).count(sampled=LENGTHS, trained=LENGTHS)
    assert found["work/scoring_flops"] == POLICY + 2 * SCALAR
    assert found["work/forward_flops"] == POLICY + SCALAR
    assert found["work/policy_flops"] == 2 * 3 * POLICY
    assert found["work/critic_flops"] == 2 * 3 * SCALAR


def test_what_is_dropped_was_scored_and_not_trained_on() -> None:
    found = StepWork(WORK, 1, (SHAPE,)).count(sampled=LENGTHS, trained=LENGTHS[:1])
    assert found["work/scoring_flops"] == POLICY + SCALAR
    assert found["work/policy_flops"] == 6 * forward_flops(SHAPE, prompt=6, response=10)


def test_recomputed_activations_are_no_progress_and_adapters_have_no_gradient_of_the_weights() -> None:
    again = replace(WORK, training=replace(WORK.training, gradient_checkpointing=True))
    assert StepWork(again, 1, ()).count(sampled=LENGTHS, trained=LENGTHS)["work/policy_flops"] == 6 * POLICY
    lora = replace(WORK, training=replace(WORK.training, lora=replace(WORK.training.lora, rank=2)))
    lora = replace(lora, reference_server=False)
    found = StepWork(lora, 1, ()).count(sampled=LENGTHS, trained=LENGTHS)
    assert found["work/policy_flops"] == 4 * POLICY
    assert (found["work/scoring_flops"], found["work/forward_flops"]) == (0.0, 2 * POLICY + SCALAR)


def test_decoding_reads_the_weights_once_a_step_of_the_engine_and_the_cache_before_each_token() -> None:
    cache = (6 * 10 + 10 * 9 / 2 + 2 * 4 + 4 * 3 / 2) * SHAPE.kv_bytes_per_token(4)
    weights = SHAPE.parameters * 4
    count = {"sampled": LENGTHS, "trained": LENGTHS}
    assert StepWork(WORK, 1, ()).count(**count)["work/decode_bytes"] == 10 * weights + cache
    one_by_one = StepWork(replace(WORK, max_num_seqs=1), 1, ()).count(**count)
    assert one_by_one["work/decode_bytes"] == 14 * weights + cache
    assert StepWork(WORK, 2, ()).count(**count)["work/decode_bytes"] == 2 * 10 * weights + cache


METRICS = {
    "ppo/sync_bytes": 100.0,
    "ppo/kl_per_response": 0.1,
    "time/sync": 4.0,
    "time/update": 10.0,
    "time/generate": 5.0,
    "work/forward_flops": 1e9,
    "work/policy_flops": 3e9,
    "work/critic_flops": 1e9,
    "work/decode_bytes": 1e6,
}


def test_rates_are_work_over_the_seconds_of_the_phase() -> None:
    assert rates_of(METRICS, RunConfig(), None) == {
        "time/sync_bytes_per_second": 25.0,
        "time/update_flops_per_second": 5e8,
        "time/decode_bytes_per_second": 2e5,
    }


def test_shares_are_of_all_devices_and_arithmetics_only_in_bfloat16() -> None:
    single = rates_of(METRICS, RunConfig(), ROUND)
    assert "time/update_mfu" not in single
    assert single["time/decode_bandwidth_fraction"] == pytest.approx(0.2)
    two = replace(RunConfig(), training=TrainingConfig(dtype="bfloat16", num_ranks=2))
    assert rates_of(METRICS, two, ROUND)["time/update_mfu"] == pytest.approx(0.25)


def test_a_skipped_step_or_an_unknown_model_has_no_rate_of_operations() -> None:
    skipped = {name: value for name, value in METRICS.items() if name != "ppo/kl_per_response"}
    assert "time/update_flops_per_second" not in rates_of(skipped, RunConfig(), None)
    assert rates_of({"ppo/sync_bytes": 0.0, "time/sync": 1.0}, RunConfig(), None) == {}


def test_rays_names_of_devices_are_understood_and_a_mixed_cluster_has_no_rate() -> None:
    assert accelerator_of_ray(["H100"]) is ACCELERATORS["h100"]
    assert accelerator_of_ray(["A100-80G"]) is ACCELERATORS["a100-80"]
    assert [accelerator_of_ray(kinds) for kinds in (["A100"], ["H100", "L40S"], [])] == [None, None, None]
