"""Healthy ranges: each belongs to a defined metric, and each remedy names settings that exist."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

import pytest

from rlhf_ray.config.run import RunConfig
from rlhf_ray.metrics.health import HEALTH, at_least, at_most
from rlhf_ray.metrics.registry import DEFINITIONS, REGISTRY

SETTING = re.compile(r"\b(?:ppo|sft|reward_model|dpo|training|generation|weight_sync)\.[a-z_.]+[a-z]")


@pytest.mark.parametrize("name", HEALTH)
def test_a_range_belongs_to_a_metric_and_says_what_to_do(name: str) -> None:
    assert name in REGISTRY
    assert HEALTH[name].remedy.endswith(".")


@pytest.mark.parametrize("name", HEALTH)
def test_a_remedy_names_settings_that_exist(name: str) -> None:
    for setting in SETTING.findall(HEALTH[name].remedy):
        place: object = RunConfig()
        for part in setting.split("."):
            assert is_dataclass(place), setting
            assert part in {field.name for field in fields(place)}, setting
            place = getattr(place, part)


def test_every_metric_says_where_it_comes_from() -> None:
    assert all(definition.source for definition in DEFINITIONS)


@pytest.mark.parametrize(("value", "healthy"), [(0.5, True), (0.6, True), (0.4, False), (float("nan"), False)])
def test_the_end_of_a_range_is_in_it_and_nan_is_not(value: float, healthy: bool) -> None:
    assert at_least(0.5, "Look.").holds(value) is healthy


def test_a_range_is_read_as_it_is_meant() -> None:
    assert (str(at_most(0.3, "")), str(at_least(1, ""))) == ("at most 0.3", "at least 1")
