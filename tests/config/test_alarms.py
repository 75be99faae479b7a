"""Rules of alarms: field, value, rule, remedy; and that those that are there can be changed one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.config.alarms import DEFAULT_RULES, AlarmRule, AlarmsConfig
from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.lineage import stage_settings

MINE = "alarms.rules.mine"
WRONG = (
    (["alarms.rules.style.metric=style/lst*"], r"^alarms\.rules\.style\.metric \('style/lst\*'\) matches no metric"),
    (
        ["alarms.rules.length.metric=text/word"],
        r"^alarms\.rules\.length\.metric .* is no metric .*did you mean 'text/",
    ),
    ([f"{MINE}.limit=1"], r"^alarms\.rules\.mine\.metric \(''\) is no metric"),
    (["alarms.rules.Mine.metric=text/words"], r"^alarms\.rules \('Mine'\) must have names of small letters"),
    (
        ["alarms.rules.style.limit=.nan"],
        r"^alarms\.rules\.style\.limit \(nan\) must be a finite number; leave a",
    ),
    (["alarms.rules.style.patience=0"], r"^alarms\.rules\.style\.patience \(0\) must be positive"),
    (["alarms.rules.style.warmup=-1"], r"^alarms\.rules\.style\.warmup \(-1\) must not be negative"),
    (["alarms.rules.gold_falls.window=3"], r"^alarms\.rules\.gold_falls\.window \(3\) must be at least 4 for a trend"),
    (
        ["alarms.rules.gold_falls.window=4"],
        r"^alarms\.rules\.gold_falls\.limit \(0\.01\) is below every chance .* 4",
    ),
    (["alarms.rules.gold_falls.limit=0.9"], r"^alarms\.rules\.gold_falls\.limit \(0\.9\) must lie between"),
    (
        ["alarms.rules.length.kind=trend"],
        r"^alarms\.rules\.length\.against \('start_ratio'\) belongs to kind=",
    ),
    (["alarms.rules.style.kind=change"], r"^alarms\.rules\.style\.warmup \(0\) must be at least 3 for a change"),
    (["alarms.kl_factor=1"], r"^alarms\.kl_factor \(1\.0\) must exceed 1"),
    (["alarms.max_kl_coef=0"], r"^alarms\.max_kl_coef \(0\.0\) must be positive"),
    (["alarms.num_samples=-1"], r"^alarms\.num_samples \(-1\) must not be negative"),
    (["alarms.rules.style.action=save"], r"^alarms\.rules\.style\.action \('save'\) needs saved states"),
    (
        ["alarms.rules.style.action=stop_keep_best", "ppo.checkpoint_every=5"],
        r"^alarms\.rules\.style\.action .* keeps the best of .*; set .*best_metric=gold/heldout_mean",
    ),
    (["alarms.rules.style.action=raise_kl", "ppo.kl.coef=0"], r"^alarms\.rules\.style\.action .* which is 0"),
    (
        ["alarms.rules.style.action=raise_kl", "methods=[dpo]", "dpo.online.num_steps=1"],
        r"^alarms\.rules\.style\.action \('raise_kl'\) is of PPO alone, .* by online DPO; use warn, save or pause",
    ),
)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: run\n")
    return path


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[" ".join(overrides) for overrides, _ in WRONG])
def test_a_broken_rule_names_field_value_rule_and_remedy(config_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, overrides)


def test_a_rule_that_is_there_is_changed_in_one_part_and_others_are_added(config_file: Path) -> None:
    added = [f"{MINE}.metric=ppo/entropy", f"{MINE}.side=below", f"{MINE}.limit=0.1"]
    config = load_config(config_file, ["alarms.rules.style.limit=2", "alarms.rules.length.enabled=false", *added])
    assert config.alarms.rules == {
        **DEFAULT_RULES,
        "style": replace(DEFAULT_RULES["style"], limit=2.0),
        "length": replace(DEFAULT_RULES["length"], enabled=False),
        "mine": AlarmRule("ppo/entropy", side="below", limit=0.1),
    }
    config_file.write_text(to_yaml(config))
    assert load_config(config_file) == config


def test_alarms_that_are_off_need_nothing(config_file: Path) -> None:
    config = load_config(config_file, ["alarms.enabled=false", "alarms.rules.style.action=save"])
    assert config.alarms.acting("save") == {}


def test_only_alarms_that_change_training_are_part_of_a_result() -> None:
    def settings(rule: AlarmRule) -> dict[str, object]:
        ppo = replace(RunConfig().ppo, checkpoint_every=1)
        return stage_settings(replace(RunConfig(), ppo=ppo, alarms=AlarmsConfig(rules={"a": rule})), ("alarms",))

    rule = AlarmRule("text/words", limit=1.0)
    plain = settings(rule)
    assert settings(replace(rule, action="pause")) == settings(replace(rule, limit=2.0)) == plain == {"seed": 0}
    raising = settings(replace(rule, action="raise_kl"))
    assert raising != plain
    assert settings(replace(rule, action="raise_kl", limit=2.0)) != raising
