"""The KubeRay manifests: fields that exist, tokens, nothing exposed, and room for what the roles ask for."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from actors import requirements
from actors.node_groups import pinned
from actors.placement import GROUPS, Node, assign
from launch.submit import CHECKOUT
from rlhf_ray.config.load import load_config
from rlhf_ray.errors import PlacementError

MANIFESTS = CHECKOUT / "launch" / "kubernetes"
SCHEMA = Draft202012Validator(json.loads((Path(__file__).parent / "schemas" / "kuberay.json").read_text()))


def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((MANIFESTS / name).read_text())
    return content


def cluster() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("raycluster.yaml")["spec"]
    return spec


def container(group: Mapping[str, Any]) -> dict[str, Any]:
    [only] = group["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def node_of(group: Mapping[str, Any]) -> Node:
    """What Ray counts on a pod of the group: its limits, and the custom resources of its start command."""
    limits = container(group)["resources"]["limits"]
    custom = json.loads(json.loads(f'"{group["rayStartParams"]["resources"][1:-1]}"'))
    gpus = float(limits.get("nvidia.com/gpu", 0))
    return Node(group["groupName"], float(limits["cpu"]), gpus, frozenset(custom))


def nodes(size: str) -> list[Node]:
    return [node_of(group) for group in cluster()["workerGroupSpecs"] for _ in range(group[size])]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_a_manifest_uses_fields_that_exist(name: str) -> None:
    assert not [f"{error.json_path}: {error.message}" for error in SCHEMA.iter_errors(manifest(name))]


def test_the_schema_finds_a_mistyped_field_and_a_wrong_type() -> None:
    wrong = copy.deepcopy(manifest("raycluster.yaml"))
    wrong["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    wrong["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert {error.json_path for error in SCHEMA.iter_errors(wrong)} == {
        "$.spec.workerGroupSpecs[0]",
        "$.spec.headGroupSpec.rayStartParams['num-cpus']",
    }


def test_the_job_s_cluster_is_the_cluster() -> None:
    assert manifest("rayjob.yaml")["spec"]["rayClusterSpec"] == cluster()


def test_ray_is_the_version_that_the_packages_pin_and_asks_for_a_token() -> None:
    pinned_version = re.search(r"^ray==(\S+)$", (CHECKOUT / "launch/constraints/gpu.txt").read_text(), re.MULTILINE)
    assert pinned_version is not None
    assert cluster()["rayVersion"] == pinned_version[1]
    assert cluster()["authOptions"] == {"mode": "token"}


def test_nothing_of_the_cluster_is_reachable_from_outside() -> None:
    assert cluster()["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = manifest("network.yaml")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    every_pod_of_a_cluster = [{"key": "ray.io/cluster", "operator": "Exists"}]
    assert policy["podSelector"]["matchExpressions"] == every_pod_of_a_cluster
    all_ports, *others = policy["ingress"]
    assert all_ports == {"from": [{"podSelector": {"matchExpressions": every_pod_of_a_cluster}}]}
    assert all(rule["ports"] == [{"protocol": "TCP", "port": 8265}] for rule in others)


def test_every_pod_has_shared_memory_that_its_memory_covers_and_asks_for_what_it_may_use() -> None:
    for group in (cluster()["headGroupSpec"], *cluster()["workerGroupSpecs"]):
        spec, one = group["template"]["spec"], container(group)
        [memory] = [v["emptyDir"] for v in spec["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"]
        mounts = {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
        assert mounts.keys() == {"/dev/shm", "/shared"}
        assert set(mounts.values()) == {volume["name"] for volume in spec["volumes"]}
        resources = one["resources"]
        assert resources["requests"] == resources["limits"]
        gigabytes = float(memory["sizeLimit"].removesuffix("Gi"))
        assert 2 * gigabytes <= float(resources["limits"]["memory"].removesuffix("Gi"))


def test_trainers_stay_and_generators_may_come_and_go() -> None:
    groups = {group["groupName"]: group for group in cluster()["workerGroupSpecs"]}
    assert {name: node_of(group).groups for name, group in groups.items()} == {
        "trainers": {"trainer", "server"},
        "generators": {"generator"},
    }
    assert set(GROUPS) == {"trainer", "server", "generator"}
    trainers, generators = groups["trainers"], groups["generators"]
    assert trainers["minReplicas"] == trainers["replicas"] == trainers["maxReplicas"]
    assert 1 <= generators["minReplicas"] <= generators["replicas"] < generators["maxReplicas"]
    assert cluster()["enableInTreeAutoscaling"]
    spot = {t["key"] for t in generators["template"]["spec"]["tolerations"]} - {"nvidia.com/gpu"}
    assert spot
    assert not spot & {t["key"] for t in trainers["template"]["spec"]["tolerations"]}


def configuration(*overrides: str) -> Any:
    words = shlex.split(shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])[-1])
    path, *given = words[words.index("pipeline") + 1 :]
    return load_config(CHECKOUT / path, [*given, *overrides])


def test_what_the_roles_of_the_job_ask_for_fits_into_the_groups() -> None:
    there = nodes("replicas")
    for wanted in requirements.stages(configuration(), "cuda").values():
        placed = assign(pinned(wanted, there), there)
        for bundle, node in placed.items():
            assert node == ("generators" if bundle.role == "generator" else "trainers")


def test_the_largest_fleet_fits_and_one_more_engine_does_not() -> None:
    there = nodes("maxReplicas")
    fleets = [
        pinned(requirements.generators(configuration(f"generation.num_engines={count}"), "cuda"), there)
        for count in (64, 65)
    ]
    assert len(assign(fleets[0], there)) == 64
    with pytest.raises(PlacementError, match=r"no generator node has room.*; 64 nodes: 4 CPU, 1 GPU \(generator\)"):
        assign(fleets[1], there)


def test_the_project_names_what_it_packs() -> None:
    data = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["launch"]
    assert "kubernetes/*" in data
