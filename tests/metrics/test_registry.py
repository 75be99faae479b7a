from __future__ import annotations

import pytest

from rlhf_ray.metrics.registry import DEFINITIONS, REGISTRY, UnknownMetricError, describe, require_registered


def test_every_metric_is_defined_once_by_one_sentence() -> None:
    assert len(REGISTRY) == len(DEFINITIONS)
    for definition in DEFINITIONS:
        assert definition.definition.endswith("."), definition.name
        assert "/" in definition.name


def test_a_metric_is_described_with_its_unit_and_direction() -> None:
    assert describe("ppo/kl_per_response").unit == "nats/response"
    assert describe("reward_model/heldout_accuracy").better == "higher"


def test_a_familys_member_is_described_by_the_family() -> None:
    assert describe("grade/honest").name == "grade/*"


@pytest.mark.parametrize("name", ["ppo/scoremean", "grade", "grade/", "reward_model/*x/y", "score_mean", ""])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(UnknownMetricError, match="has no definition"):
        describe(name)


def test_the_error_suggests_the_nearest_name() -> None:
    with pytest.raises(UnknownMetricError, match=r"did you mean 'ppo/score_mean'\?"):
        require_registered(["ppo/kl_coef", "ppo/scores_mean"])
