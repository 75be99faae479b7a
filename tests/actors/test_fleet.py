"""What a size that a person asks for means for the stages that come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors import requirements
from actors.fleet import SCALED, Fleet, scaled
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError


def counts(config: RunConfig) -> dict[str, int]:
    wanted = requirements.stages(config, "cpu")["ppo"]
    return {role: sum(bundle.role == role for bundle in wanted) for role in SCALED}


def test_later_stages_start_with_the_sizes_that_were_asked_for() -> None:
    fleet = Fleet(RunConfig(), "cpu")
    assert counts(fleet.config) == {"generator": 1, "reference": 1, "reward_model": 1}
    for role, count in zip(SCALED, (2, 3, 4), strict=True):
        fleet.resize(role, count)
    assert counts(fleet.config) == {"generator": 2, "reference": 3, "reward_model": 4}
    assert fleet.config.generation.scale == "fixed"


@pytest.mark.parametrize("role", ["trainer", "reward short"])
def test_other_roles_are_refused(role: str) -> None:
    with pytest.raises(ConfigError, match="cannot be scaled while a run is under way; scale one of generator, ref"):
        scaled(RunConfig(), role, 2)


def test_with_lora_there_is_no_reference_server_to_scale() -> None:
    config = RunConfig()
    lora = replace(config.training.lora, rank=4)
    with pytest.raises(ConfigError, match=r"^--references \(2\) cannot be had"):
        scaled(replace(config, training=replace(config.training, lora=lora)), "reference", 2)
