"""The Ray cluster of a run: start one on this machine, or join the one that exists."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from actors.placement import Node, nodes_from_ray
from rlhf_ray.config.cluster import ClusterConfig
from rlhf_ray.errors import PlacementError
from rlhf_ray.planning.hardware import Accelerator, accelerator_of_ray


@contextmanager
def cluster(config: ClusterConfig, *, wanted_cpus: float) -> Iterator[None]:
    """Be connected to a Ray cluster inside the block.

    A local cluster is told of as many logical CPUs as the run wants: on a laptop its roles take turns, and Ray's counts
    are for placement, not a limit on time.
    """
    if joins_existing(config):
        _join(config)
        try:
            yield
        finally:
            ray.shutdown()
        return
    directory = Path(tempfile.mkdtemp(prefix="rlhf-ray-", dir="/tmp"))  # short: Ray puts sockets there
    try:
        with _environment(RAY_USAGE_STATS_ENABLED="0", TMPDIR=str(directory)):
            _start(config, wanted_cpus, directory)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def _start(config: ClusterConfig, wanted_cpus: float, directory: Path) -> None:
    ray.init(
        address="local",
        num_cpus=config.num_cpus or max(os.cpu_count() or 1, math.ceil(wanted_cpus)),
        object_store_memory=config.object_store_mb * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(directory),
    )


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables that the cluster's processes inherit: what they leave in TMPDIR goes with the cluster."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def joins_existing(config: ClusterConfig) -> bool:
    """Whether a run joins a cluster that is there; else it starts one on this machine."""
    # A job on a cluster finds its address there; an http address is where jobs are sent, not a cluster to join.
    inside_job = "RAY_JOB_ID" in os.environ or not os.environ.get("RAY_ADDRESS", "http").startswith("http")
    return config.address not in ("local", "auto_or_local") or (config.address == "auto_or_local" and inside_job)


def _join(config: ClusterConfig) -> None:
    address = "auto" if config.address == "auto_or_local" else config.address
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PlacementError(
            f"no Ray cluster answers at {address!r} (cluster.address): {error}; start one with `ray start --head`, "
            "set RAY_ADDRESS, or use cluster.address=local"
        ) from error


def living_nodes() -> tuple[Node, ...]:
    """The nodes of the cluster that this process is connected to, with what they have in all."""
    return nodes_from_ray(ray.nodes())


def resolve_device(wanted: str) -> str:
    """``auto``: GPUs where the cluster has any."""
    if wanted != "auto":
        return wanted
    return "cuda" if any(node.gpus > 0 for node in living_nodes()) else "cpu"


def known_accelerator() -> Accelerator | None:
    """The rates of the cluster's GPUs, where all are of one kind that is known."""
    prefix = "accelerator_type:"  # of the resources by which Ray tells kinds apart
    return accelerator_of_ray(name.removeprefix(prefix) for name in ray.cluster_resources() if name.startswith(prefix))
