"""A judge is checked at the door, and what it may cost decides nothing about its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.judge import BudgetConfig, JudgeConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.judging import check_judge
from rlhf_ray.pipeline.lineage import stage_settings
from tests.pipeline.fakes import FakeTask, make_context, prompt

ENDPOINT: dict[str, Any] = {"kind": "endpoint", "url": "http://judge/v1", "model": "m"}


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (JudgeConfig(kind="model", template="none.j2"), r"judge\.template \('none\.j2'\) cannot be read"),
        (JudgeConfig(kind="model", constitution="none.yaml"), r"judge\.constitution \('none\.yaml'\) is no file"),
        (JudgeConfig(**ENDPOINT, key_env="NO_SUCH_KEY"), r"judge\.key_env \('NO_SUCH_KEY'\) must name a variable"),
        (JudgeConfig(kind="simulated"), "needs data with a ground truth"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, judge: JudgeConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_judge(make_context(tmp_path, replace(RunConfig(), judge=judge), FakeTask()))


def test_a_simulated_judge_needs_grades_of_gold(tmp_path: Path) -> None:
    task = FakeTask()
    task.asked["train"] = [prompt(1)]
    check_judge(make_context(tmp_path, replace(RunConfig(), judge=JudgeConfig(kind="simulated")), task))


def test_a_result_depends_on_the_judge_and_not_on_its_budget_or_pace(tmp_path: Path) -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        config = replace(RunConfig(), judge=JudgeConfig(kind="simulated", **changes))
        return stage_settings(config, ("judge",))

    plain = settings()
    assert settings(budget=BudgetConfig(max_tokens=5), batch_size=1, timeout_s=1.0, store="x.db") == plain
    assert settings(error_rate=0.1) != plain
    template = tmp_path / "t.j2"
    template.write_text("one")
    first = settings(template=str(template))
    template.write_text("two")
    assert settings(template=str(template)) != first  # what lies in the file counts
