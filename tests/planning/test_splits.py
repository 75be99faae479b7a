"""The search over splits: it uses every device, and no split that fits is faster."""

from __future__ import annotations

from dataclasses import replace

from rlhf_ray.config.load import load_config
from rlhf_ray.planning.hardware import ACCELERATORS, Efficiency
from rlhf_ray.planning.plan import make_plan, remedy_for
from rlhf_ray.planning.shapes import KNOWN
from rlhf_ray.planning.splits import configured, judge, search, splits
from rlhf_ray.planning.workload import workload_of
from tests.planning.made_up import WORK

H100 = ACCELERATORS["h100"]


def test_every_split_uses_every_device_and_divides_the_heads() -> None:
    found = list(splits(WORK, 8, H100, 1))
    assert {split.devices for split in found} == {8}
    assert {split.tensor_parallel for split in found} == {1, 2}  # the model has two heads
    assert len(set(found)) == len(found)


def test_the_first_candidate_is_the_fastest_of_those_that_fit() -> None:
    config = load_config("configs/qwen3_8b_8gpu.yaml")
    work = workload_of(config, KNOWN["Qwen/Qwen3-8B"])
    found = search(config, work, devices=8, nodes=1, device=H100, efficiency=Efficiency())
    fitting = [candidate for candidate in found if candidate.fits]
    assert found[0].fits
    assert found[0].seconds.in_turn == min(candidate.seconds.in_turn for candidate in fitting)
    assert all(candidate.fits for candidate in found[: len(fitting)])


def test_the_presets_for_gpus_fit_where_they_say_they_do() -> None:
    for name, gpus, nodes in (("qwen3_8b_8gpu", 8, 1), ("llama3_70b_64gpu", 64, 8)):
        made = make_plan(load_config(f"configs/{name}.yaml"), devices=gpus, nodes=nodes, device=H100)
        assert made.configured.fits, (name, made.configured.short)
        assert made.configured.split.devices <= gpus


def test_a_model_that_is_too_large_gets_a_remedy_that_fits() -> None:
    config = load_config("configs/qwen3_8b_8gpu.yaml", ["training.zero_stage=0", "training.offload_optimizer=false"])
    work = workload_of(config, KNOWN["Qwen/Qwen3-8B"])
    tight = judge(config, work, configured(config, work), H100, Efficiency())
    assert tight.short == ("trainer rank",)
    assert remedy_for(config, work, tight, H100, Efficiency()).startswith("set training.zero_stage=3")


def test_what_fits_nowhere_is_said_with_what_would_help() -> None:
    config = load_config("configs/llama3_70b_64gpu.yaml", ["training.lora.rank=0"])
    made = make_plan(config, devices=8, nodes=1, device=H100)
    assert not made.best.fits
    assert any("asks for" in line for line in made.advice)
    assert any("fits" in line for line in made.advice)


def test_more_devices_and_faster_ones_take_less_time() -> None:
    config = load_config("configs/qwen3_8b_8gpu.yaml")
    seconds = {
        (gpus, name): make_plan(config, devices=gpus, nodes=1, device=ACCELERATORS[name]).best.seconds.in_turn
        for gpus, name in ((8, "h100"), (8, "a100-80"), (8, "b200"))
    }
    assert seconds[8, "b200"] < seconds[8, "h100"] < seconds[8, "a100-80"]
    sixteen = make_plan(config, devices=16, nodes=2, device=H100)
    assert sixteen.best.seconds.in_turn < seconds[8, "h100"]


def test_the_schedule_overlaps_only_where_it_pays() -> None:
    config = load_config("configs/qwen3_8b_8gpu.yaml")
    made = make_plan(config, devices=8, nodes=1, device=H100)
    seconds = made.best.seconds
    assert (made.schedule == "one_step_off") == (seconds.in_turn > 1.15 * seconds.overlapped)
    idle = replace(made.best, split=replace(made.best.split, shared=True))
    assert replace(made, best=idle).schedule == "sync"  # roles that share devices cannot run at once


def test_on_one_gpu_all_roles_share_it_and_the_cache_takes_what_is_left() -> None:
    made = make_plan(load_config("configs/qwen3_0.6b_1gpu.yaml"), devices=1, nodes=1, device=H100)
    assert made.configured.split.shared
    assert made.best.split.shared
    assert sum(memory.total for memory in made.best.memory) <= 0.95 * H100.memory
    assert made.schedule == "sync"
