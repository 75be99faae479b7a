"""Which settings a result depends on, and the files that settings name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.rewards import RewardsConfig, RewardSourceConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.pipeline.lineage import WHOLLY_READ_BYTES, WITHOUT_EFFECT, changes, fingerprint, stage_settings


def test_a_section_counts_without_what_has_no_effect() -> None:
    settings = stage_settings(RunConfig(seed=5), ("training", "ppo.max_response_tokens"))
    assert settings["seed"] == 5
    assert settings["ppo.max_response_tokens"] == 48
    assert {"dtype", "lora", "layout"} <= settings["training"].keys()
    without = {"cpus_per_rank", "num_ranks", "zero_stage", "threads_per_rank", "timeout_s"}
    assert not without & settings["training"].keys()


def test_what_has_no_effect_exists() -> None:
    for path in WITHOUT_EFFECT:
        section, *parents, name = path.split(".")
        part = stage_settings(RunConfig(), (section,))[section]
        whole = getattr(RunConfig(), section)
        for parent in parents:
            part, whole = part[parent], getattr(whole, parent)
        assert hasattr(whole, name), path
        assert name not in part, path


def test_how_patiently_a_source_of_rewards_is_asked_has_no_effect() -> None:
    source = RewardSourceConfig(kind="http", url="http://x")
    patient = replace(source, timeout_s=9.0, max_retries=9, num_workers=9, token_env="TOKEN")
    heavier = replace(source, weight=2.0)

    def settings(source: RewardSourceConfig) -> object:
        ppo = PpoConfig(critic_initialise_from="sft")
        return stage_settings(replace(RunConfig(), rewards=RewardsConfig({"a": source}), ppo=ppo), ("rewards",))

    assert settings(source) == settings(patient) != settings(heavier)


def test_a_reward_counts_by_the_module_or_checkpoint_that_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, checkpoint = tmp_path / "my_rewards_of_this_test.py", tmp_path / "model"
    checkpoint.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    sources = {
        "f": RewardSourceConfig(kind="function", function="my_rewards_of_this_test:reward"),
        "m": RewardSourceConfig(path=str(checkpoint)),
        "h": RewardSourceConfig(kind="http", url="http://x"),
        "missing": RewardSourceConfig(kind="function", function="no.such.module:reward"),
        "built_in": RewardSourceConfig(kind="function", function="exact_answer"),
    }
    config = replace(RunConfig(), rewards=RewardsConfig(sources), ppo=PpoConfig(critic_initialise_from="sft"))

    def contents(code: str, weights: str) -> dict[str, object]:
        module.write_text(code)
        (checkpoint / "weights").write_text(weights)
        found = stage_settings(config, ("rewards",))
        return {name: value for name, value in found.items() if name.startswith("contents")}

    first, second, third = contents("1", "1"), contents("2", "1"), contents("2", "2")
    assert first.keys() == {"contents of rewards.sources.f", "contents of rewards.sources.m"}
    assert [name for name in first if first[name] != second[name]] == ["contents of rewards.sources.f"]
    assert [name for name in second if second[name] != third[name]] == ["contents of rewards.sources.m"]


def test_a_template_counts_by_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"

    def settings(text: str) -> object:
        path.write_text(text)
        return stage_settings(replace(RunConfig(), model=ModelConfig(chat_template=str(path))), ("model",))

    assert settings("one") != settings("two")
    assert settings("one") == settings("one")


def test_a_built_in_name_is_not_taken_for_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chatml").mkdir()
    (tmp_path / "sft").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert stage_settings(RunConfig(), ("model", "reward_model")).keys() == {"seed", "model", "reward_model"}


def test_a_directory_counts_by_names_and_contents(tmp_path: Path) -> None:
    root = tmp_path / "model"
    (root / "inner").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "inner" / "weights").write_text("abc")
    first = fingerprint(str(root))
    os.utime(root / "config.json", (1, 1))
    assert fingerprint(str(root)) == first  # small files: by content
    (root / "inner" / "weights").write_text("abd")
    second = fingerprint(str(root))
    (root / "inner" / "weights").rename(root / "weights")
    assert len({first, second, fingerprint(str(root))}) == 3


def test_large_files_count_by_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(WHOLLY_READ_BYTES + 1)
    os.utime(path, (1, 1))
    first = fingerprint(str(path))
    os.utime(path, (2, 2))
    assert fingerprint(str(path)) != first
    os.utime(path, (1, 1))
    assert fingerprint(str(path)) == first


def test_a_name_on_the_hub_has_no_contents_here() -> None:
    assert fingerprint("owner/no-such-model") == ""


def test_changes_are_told_setting_by_setting() -> None:
    before = {"seed": 0, "ppo": {"kl": {"coef": 0.05}, "num_steps": 3}, "gone": 1}
    after = {"seed": 0, "ppo": {"kl": {"coef": 0.1}, "num_steps": 3}, "new": [1]}
    assert changes(before, after) == ["gone: 1 -> not there", "new: not there -> [1]", "ppo.kl.coef: 0.05 -> 0.1"]
