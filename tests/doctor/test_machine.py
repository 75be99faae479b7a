"""Room on the cluster, in memory and on the disk: each finding is provoked."""

from __future__ import annotations

from dataclasses import replace

from rlhf_ray.doctor.estimates import disk_bytes, role_memory
from rlhf_ray.doctor.findings import Severity
from rlhf_ray.planning.shapes import KNOWN, scratch_shape
from tests.doctor.made_up import GIB, changed, found, healthy, on_gpus, run_of, the

ERROR, WARNING, NOTE, OK = Severity.ERROR, Severity.WARNING, Severity.NOTE, Severity.OK


def test_a_cluster_that_does_not_answer_is_an_error() -> None:
    facts = changed(healthy(), "machine", cluster_problem="no Ray cluster answers at '10.0.0.1:6379'")
    assert "10.0.0.1" in the(facts, ERROR, "cluster.address").found


def test_cuda_without_a_gpu_is_an_error() -> None:
    assert "no node" in the(healthy("device=cuda"), ERROR, "device").found


def test_bundles_that_can_never_be_placed_are_errors_that_name_the_settings() -> None:
    problem = (
        "the cluster can never hold trainer 3: not enough CPUs. The cluster has x. Lower one of training.num_ranks"
    )
    facts = changed(healthy(), "machine", placement={"ppo": problem})
    finding = the(facts, ERROR, "placement of ppo")
    assert finding.fix == "Lower one of training.num_ranks"
    assert not found(facts, OK, "placement")
    assert "1.5 CPUs" in the(healthy(), OK, "placement").found


def test_roles_that_take_turns_are_a_note() -> None:
    assert (
        "take turns" in the(changed(healthy(), "machine", wanted={"ppo": (6.0, 0.0)}), NOTE, "cluster.num_cpus").found
    )


def test_memory_that_is_too_small_or_taken() -> None:
    assert "PPO needs" in the(healthy(), OK, "memory").found
    assert the(changed(healthy(), "machine", memory_free=1 * GIB), WARNING, "memory").fix
    assert the(changed(healthy(), "machine", memory=1 * GIB, memory_free=1 * GIB), ERROR, "memory")


def test_a_role_that_does_not_fit_on_a_gpu_is_an_error() -> None:
    large = replace(on_gpus(healthy()), shape=KNOWN["meta-llama/Llama-3.1-70B-Instruct"])
    assert "trainer rank" in the(large, ERROR, "training").found
    assert "GB" in the(large, ERROR, "generation").found
    assert "trainer rank" in the(on_gpus(healthy()), OK, "GPU memory").found


def test_roles_that_share_a_gpu_must_fit_together() -> None:
    together = on_gpus(healthy("training.gpus_per_rank=0.5"))
    assert "share" in the(together, ERROR, "generation.gpu_memory_utilization").found  # 0.9 leaves too little
    less = on_gpus(healthy("training.gpus_per_rank=0.5", "generation.gpu_memory_utilization=0.3"))
    assert found(less, OK, "GPU memory")


def test_shared_memory_that_is_too_small_is_an_error() -> None:
    facts = changed(healthy(), "machine", shm_free=0.0625 * GIB)  # what a container has unless it is told otherwise
    assert "--shm-size" in the(facts, ERROR, "cluster.object_store_mb").fix
    assert found(healthy(), OK, "shared memory")


def test_a_disk_that_is_full_or_cannot_be_written_is_an_error() -> None:
    assert the(changed(healthy(), "machine", writable=False), ERROR, "output_dir").fix == "choose another output_dir"
    need = sum(disk_bytes(run_of(), scratch_shape(run_of().model.scratch)).values())
    assert the(changed(healthy(), "machine", disk_free=need / 2), ERROR, "output_dir")
    assert the(changed(healthy(), "machine", disk_free=need * 1.1), WARNING, "output_dir")
    assert found(healthy(), OK, "disk")


def test_a_network_without_ports_is_an_error() -> None:
    assert the(changed(healthy(), "machine", loopback=False), ERROR, "ports")


def test_the_disk_holds_three_states_and_one_model_a_stage() -> None:
    config = run_of("ppo.checkpoint_every=6")
    shape = scratch_shape(config.model.scratch)
    parts = disk_bytes(config, shape)
    assert parts["states"] == 3 * (4 + 8) * (shape.parameters + shape.scalar_parameters)
    assert parts["models"] == 4 * (3 * shape.parameters + shape.scalar_parameters)  # built, SFT, PPO; reward model
    assert disk_bytes(run_of("ppo.checkpoint_every=0"), shape)["states"] == 0
    assert disk_bytes(run_of("ppo.save_rollouts=true"), shape)["rollouts"] == 12 * 128 * 128 * 24


def test_each_role_of_ppo_is_counted() -> None:
    config = run_of("training.num_ranks=2", "generation.num_engines=3")
    roles = role_memory(config, scratch_shape(config.model.scratch), device="cpu", gpu_memory=0.0)
    assert [(each.role, count) for each, count in roles] == [
        ("trainer rank", 2),
        ("generator", 3),
        ("reference", 1),
        ("reward model", 1),
    ]
    adapted = run_of("training.lora.rank=8")
    names = [
        each.role for each, _ in role_memory(adapted, scratch_shape(adapted.model.scratch), device="cpu", gpu_memory=0)
    ]
    assert "reference" not in names
