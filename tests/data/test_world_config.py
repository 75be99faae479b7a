"""Settings of the microworld are refused at the door, with field, rule, value and remedy."""

from __future__ import annotations

import pytest

from rlhf_ray.config.world import NUM_TOWNS, DemonstrationMix, WorldConfig
from rlhf_ray.data.world_facts import TOWNS
from rlhf_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_entities", 4),
        ("num_entities", 49),
        ("num_train_prompts", 0),
        ("num_heldout_prompts", 4),
        ("demonstrations_per_prompt", 0),
        ("heldout_entities", 0.0),
        ("heldout_entities", 1.0),
        ("true_premise", 1.5),
        ("annotator_overlap", -0.1),
        ("annotator_noise", -1.0),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        WorldConfig(**{field: value})  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.value) == (f"world.{field}", value)


def test_flaws_that_exclude_each_other_cannot_exceed_the_whole() -> None:
    with pytest.raises(ConfigError, match=r"world\.mix\.agrees \(0\.9\).*not 1\.10; try 0\.80 or less"):
        DemonstrationMix(wrong=0.1, refuses=0.1, agrees=0.9)


def test_a_share_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"world\.mix\.verbose \(2\.0\) must be a share"):
        DemonstrationMix(verbose=2.0)


def test_a_quarter_of_the_default_world_is_held_out() -> None:
    assert (WorldConfig().num_entities, WorldConfig().num_heldout_entities) == (24, 6)


def test_there_are_as_many_towns_as_the_limit_says() -> None:
    assert len(set(TOWNS)) == NUM_TOWNS == 48
