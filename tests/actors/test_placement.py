"""Placement is arithmetic: what fits, what never will, and what a person is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.placement import Bundle, Node, assign, bundles, least_taken, nodes_from_ray, total
from rlhf_ray.errors import PlacementError

LAPTOP = (Node("laptop", 4.0, 0.0),)
TWO_NODES = (Node("a", 8.0, 4.0), Node("b", 8.0, 4.0))


def test_a_bundle_asks_for_gpus_only_on_gpus() -> None:
    (on_cpu,) = bundles("trainer", count=1, cpus=2, gpus=1, device="cpu", field="training.num_ranks")
    (on_gpu,) = bundles("trainer", count=1, cpus=2, gpus=1, device="cuda", field="training.num_ranks")
    assert on_cpu.resources == {"CPU": 2}
    assert on_gpu.resources == {"CPU": 2, "GPU": 1}
    assert str(on_gpu) == "trainer 0: 2 CPU + 1 GPU"
    assert str(Bundle("probe", 3, 0, 0, "x")) == "probe 3: nothing"


def test_what_fits_is_placed_without_overlap() -> None:
    trainers = bundles("trainer", count=4, cpus=1, gpus=1, device="cuda", field="f")
    generators = bundles("generator", count=2, cpus=1, gpus=2, device="cuda", field="f")
    placed = assign([*trainers, *generators], TWO_NODES)
    used = {name: total(b for b in placed if placed[b] == name) for name in ("a", "b")}
    assert len(placed) == 6
    assert used == {"a": (2.0, 4.0), "b": (4.0, 4.0)}


def test_the_largest_are_placed_first_so_that_small_ones_do_not_split_the_room() -> None:
    small = bundles("reward_model", count=2, cpus=0, gpus=1, device="cuda", field="f")
    large = bundles("generator", count=1, cpus=0, gpus=4, device="cuda", field="f")
    nodes = (Node("a", 1.0, 4.0), Node("b", 1.0, 2.0))
    placed = assign([*small, *large], nodes)
    assert placed[large[0]] == "a"
    assert {placed[bundle] for bundle in small} == {"b"}


def test_tenths_that_add_up_to_one_fit_into_one() -> None:
    assert (
        len(assign(bundles("x", count=10, cpus=0.1, gpus=0.1, device="cuda", field="f"), [Node("n", 1.0, 1.0)])) == 10
    )


def test_nodes_that_share_an_address_both_count() -> None:
    nodes = (Node("127.0.0.1", 1.0, 0.0), Node("127.0.0.1", 1.0, 0.0))
    assert len(assign(bundles("x", count=2, cpus=1, gpus=0, device="cpu", field="f"), nodes)) == 2


def test_too_few_cpus_say_what_is_asked_what_exists_and_what_to_change() -> None:
    wanted = (
        *bundles("trainer", count=2, cpus=2, gpus=0, device="cpu", field="training.num_ranks"),
        *bundles("generator", count=1, cpus=1, gpus=0, device="cpu", field="generation.num_engines"),
    )
    with pytest.raises(PlacementError) as caught:
        assign(wanted, LAPTOP)
    assert str(caught.value) == (
        "the cluster can never hold generator 0: 1 CPU: not enough CPUs. Asked for 5 CPU and 0 GPU in all: "
        "trainer x2 (2 CPU); generator x1 (1 CPU). The cluster has laptop: 4 CPU, 0 GPU. "
        "Lower one of generation.num_engines, training.num_ranks, or add nodes."
    )


def test_too_few_gpus_are_told_from_too_few_cpus() -> None:
    nine = bundles("trainer", count=9, cpus=1, gpus=1, device="cuda", field="training.num_ranks")
    with pytest.raises(PlacementError, match=r"trainer 8: 1 CPU \+ 1 GPU: not enough GPUs\. Asked for 9 CPU and 9 GPU"):
        assign(nine, TWO_NODES)
    with pytest.raises(PlacementError, match=r"not enough CPUs and GPUs"):
        assign(bundles("trainer", count=17, cpus=1, gpus=1, device="cuda", field="f"), TWO_NODES)


def test_enough_in_all_but_on_no_single_node_says_so() -> None:
    with pytest.raises(PlacementError, match=r"generator 0: 1 CPU \+ 6 GPU: no single node has room for it beside"):
        assign(bundles("generator", count=1, cpus=1, gpus=6, device="cuda", field="f"), TWO_NODES)


def test_a_cluster_without_nodes_holds_nothing() -> None:
    with pytest.raises(PlacementError, match=r"The cluster has no node\."):
        assign(bundles("x", count=1, cpus=1, gpus=0, device="cpu", field="f"), ())


def test_dead_nodes_do_not_count() -> None:
    rows = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}},
        {"Alive": False, "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 8.0}},
        {"Alive": True, "NodeManagerAddress": "10.0.0.3", "Resources": {}},
    ]
    assert nodes_from_ray(rows) == (Node("10.0.0.1", 8.0, 2.0), Node("10.0.0.3", 0.0, 0.0))


def test_a_bundle_of_a_group_goes_to_a_node_of_that_group_alone() -> None:
    nodes = (Node("a", 8.0, 0.0, frozenset({"generator"})), Node("b", 1.0, 0.0, frozenset({"trainer", "server"})))
    wanted = [
        Bundle(role, 0, 0.5, 0.0, "f", group)
        for role, group in (("trainer", "trainer"), ("generator", "generator"), ("reference", "server"))
    ]
    placed = assign(wanted, nodes)
    assert [placed[bundle] for bundle in wanted] == ["b", "a", "b"]
    assert wanted[0].resources == {"CPU": 0.5, "trainer": 0.001}
    assert str(wanted[2]) == "reference 0: 0.5 CPU on a server node"


def test_room_on_nodes_of_another_group_does_not_help_and_the_error_says_so() -> None:
    nodes = (Node("a", 8.0, 0.0, frozenset({"generator"})), Node("b", 1.0, 0.0, frozenset({"trainer"})))
    two = [Bundle("trainer", i, 1.0, 0.0, "training.num_ranks", "trainer") for i in range(2)]
    with pytest.raises(PlacementError) as caught:
        assign(two, nodes)
    assert "trainer 1: 1 CPU on a trainer node: no trainer node has room" in str(caught.value)
    assert "a: 8 CPU, 0 GPU (generator); b: 1 CPU, 0 GPU (trainer)" in str(caught.value)


def test_a_node_says_its_groups_with_custom_resources() -> None:
    resources = {"CPU": 1.0, "generator": 1.0, "node:10.0.0.1": 1.0, "accelerator_type:H100": 1.0}
    (node,) = nodes_from_ray([{"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": resources}])
    assert node.groups == {"generator"}


def test_an_actor_that_comes_alone_goes_where_the_fewest_of_its_role_are() -> None:
    bundle = Bundle("generator", 0, 2.0, 1.0, "f")
    free = [Node("a", 8.0, 4.0), Node("b", 8.0, 2.0), Node("full", 1.0, 8.0), Node("c", 4.0, 2.0)]
    assert least_taken(bundle, free, {}) == "a"
    assert least_taken(bundle, free, {"a": 1}) == "b"
    assert least_taken(bundle, free, {"a": 1, "b": 1}) == "c"
    assert least_taken(bundle, free, {"a": 1, "b": 1, "c": 1}) == "a"
    assert least_taken(bundle, [Node("full", 1.0, 8.0)], {}) is None
    grouped = replace(bundle, group="generator")
    assert least_taken(grouped, free, {}) is None
    assert least_taken(grouped, [*free, Node("own", 2.0, 1.0, frozenset({"generator"}))], {}) == "own"
