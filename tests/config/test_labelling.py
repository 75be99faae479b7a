"""Where the page may be served, and whom it may ask for what."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_ray.config.labelling import AssignmentConfig, LabellingConfig, ServingConfig
from rlhf_ray.errors import ConfigError


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "label.example.org"])
def test_an_address_that_others_reach_is_refused_with_what_it_would_mean(host: str) -> None:
    with pytest.raises(ConfigError, match=r"label\.host .* who listens on the way reads every token"):
        ServingConfig(host=host)


def test_an_address_that_others_reach_can_be_asked_for() -> None:
    assert ServingConfig(host="192.168.1.5", open_to_network=True).allowed_hosts == ("192.168.1.5",)
    with pytest.raises(ConfigError, match="add --public-url"):
        ServingConfig(host="0.0.0.0", open_to_network=True)


def test_behind_a_proxy_with_tls_cookies_are_secure_and_its_name_is_allowed() -> None:
    serving = ServingConfig(public_url="https://label.example.org")
    assert serving.secure
    assert serving.allowed_hosts == ("127.0.0.1", "label.example.org", "localhost")
    assert not ServingConfig().secure


@pytest.mark.parametrize(
    ("kind", "wrong", "field"),
    [
        (ServingConfig, {"port": 70000}, "label.port"),
        (ServingConfig, {"public_url": "label.example.org"}, "label.public_url"),
        (ServingConfig, {"requests_per_minute": 0}, "label.requests_per_minute"),
        (AssignmentConfig, {"gold_every": 1}, "label.gold_every"),
        (AssignmentConfig, {"overlap": 0}, "label.overlap"),
        (AssignmentConfig, {"lease_minutes": 0.0}, "label.lease_minutes"),
        (LabellingConfig, {"annotators": ("a b",)}, "label.annotators"),
        (LabellingConfig, {"annotators": ("manager",)}, "label.annotators"),
        (LabellingConfig, {"annotators": ("ann", "ann")}, "label.annotators"),
        (LabellingConfig, {"axes": ("1st",)}, "label.axes"),
        (LabellingConfig, {"scale": 1}, "label.scale"),
    ],
)
def test_a_setting_that_cannot_be_is_named(kind: type, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        kind(**wrong)
    assert error.value.field == field
