"""Ranks of the NCCL group."""

from __future__ import annotations

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.weight_sync.topology import NcclGroup


def test_trainer_and_all_workers_of_all_engines_have_one_rank_each() -> None:
    group = NcclGroup(address="10.0.0.1", port=29500, num_engines=3, workers_per_engine=2)
    ranks = [0] + [group.engine_info(engine)["rank_offset"] + worker for engine in range(3) for worker in range(2)]
    assert ranks == list(range(group.world_size))
    assert group.world_size == 7


def test_all_members_are_told_the_same_meeting_place() -> None:
    group = NcclGroup(address="10.0.0.1", port=29500, num_engines=1, workers_per_engine=1)
    assert group.trainer_info == {"master_address": "10.0.0.1", "master_port": 29500, "world_size": 2}
    assert group.engine_info(0) == {**group.trainer_info, "rank_offset": 1}


def test_an_engine_outside_of_the_group_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine \(2\) must be one of the 2 engines"):
        NcclGroup(address="h", port=1, num_engines=2, workers_per_engine=1).rank_offset(2)


def test_a_group_without_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nccl.workers_per_engine \(0\)"):
        NcclGroup(address="h", port=1, num_engines=1, workers_per_engine=0)
