"""Rules of a judge's configuration: what cannot work is an error with its remedy."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_ray.config.judge import BudgetConfig, JudgeConfig, RevisionConfig
from rlhf_ray.errors import ConfigError

ENDPOINT: dict[str, Any] = {"kind": "endpoint", "url": "http://judge:8000/v1", "model": "m"}


def test_a_run_has_no_judge_unless_it_asks_for_one() -> None:
    assert not JudgeConfig().is_there
    assert JudgeConfig(kind="model").is_there


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "x"}, r"judge\.path \('x'\) belongs to judge\.kind=model, and judge\.kind is none"),
        ({**ENDPOINT, "error_rate": 0.1}, "belongs to judge.kind=simulated"),
        ({"kind": "model", "key_env": "X"}, "belongs to judge.kind=endpoint"),
        ({**ENDPOINT, "url": "judge:8000"}, "must be an address that begins with http"),
        ({**ENDPOINT, "model": ""}, "must name the model"),
        ({"share": 1.5}, r"judge\.share \(1\.5\) must lie between 0 and 1"),
        ({"kind": "simulated", "error_rate": 0.6}, r"must lie between 0 and 0\.5"),
        ({"num_votes": 3}, "all votes would be equal; use verdict=text and a temperature above 0"),
        ({"num_votes": 3, "verdict": "text"}, "at temperature 0"),
        ({"pattern": "A|B"}, "must be a regular expression with a group"),
        ({"pattern": "("}, "must be a regular expression with a group"),
        ({"batch_size": 0}, "must be positive"),
    ],
)
def test_what_a_judge_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JudgeConfig(**settings)


def test_money_needs_prices() -> None:
    assert BudgetConfig(max_money=1.0, price_written=2.0).max_tokens is None
    with pytest.raises(ConfigError, match="needs a price, or nothing would ever cost anything"):
        BudgetConfig(max_money=1.0)
    with pytest.raises(ConfigError, match="must not be negative"):
        BudgetConfig(max_tokens=-1)


def test_revisions_need_prompts_and_rounds() -> None:
    with pytest.raises(ConfigError, match=r"revision\.num_rounds \(0\) must be positive"):
        RevisionConfig(num_rounds=0)
