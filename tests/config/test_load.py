"""From files and overrides to a checked configuration: what is read, and what every mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A file that changes nothing."""
    path = tmp_path / "run.yaml"
    path.write_text("name: run\n")
    return path


# -------------------------------------------------------------------------------------------------------------- reading
def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\nppo: {num_steps: 7, kl: {coef: 0.2}}\n")
    config, default = load_config(path), RunConfig()
    assert (config.seed, config.ppo.num_steps, config.ppo.kl.coef) == (3, 7, 0.2)
    assert config.sft == default.sft
    assert config.ppo.kl.target == default.ppo.kl.target


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("")
    assert load_config(path).ppo == RunConfig().ppo
    assert load_config(path).output_dir == "runs/run"


def test_later_overrides_win_and_reach_into_sections_and_lists(config_file: Path) -> None:
    config = load_config(
        config_file,
        [
            "ppo.num_steps=4",
            "ppo.num_steps=5",
            "sft.optimizer.learning_rate=2e-3",
            "comparison.temperatures=[0.7,1.0]",
            "training.lora.target_modules=[q_proj]",
            "generation.engine_args.block_size=16",
            "name=other",
        ],
    )
    assert config.ppo.num_steps == 5
    assert config.sft.optimizer.learning_rate == 0.002
    assert tuple(config.comparison.temperatures) == (0.7, 1.0)
    assert tuple(config.training.lora.target_modules) == ("q_proj",)
    assert config.generation.engine_args == {"block_size": 16}
    assert config.output_dir == "runs/other"


def test_a_base_is_read_first_and_a_base_may_have_a_base(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "root.yaml").write_text("seed: 1\nname: root\nppo: {num_steps: 1, num_epochs: 4}\n")
    (tmp_path / "shared" / "middle.yaml").write_text("base: root.yaml\nppo: {num_steps: 2}\n")
    (tmp_path / "run.yaml").write_text("base: shared/middle.yaml\nname: leaf\n")
    config = load_config(tmp_path / "run.yaml")
    assert (config.seed, config.name, config.ppo.num_steps, config.ppo.num_epochs) == (1, "leaf", 2, 4)


def test_bases_that_go_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"base \('.*a\.yaml'\) leads back to itself; break the circle"):
        load_config(tmp_path / "a.yaml")


def test_a_base_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(ConfigError, match=r"CONFIG \('.*b\.yaml'\) is not a file"):
        load_config(tmp_path / "a.yaml")


def test_sources_of_rewards_are_named_in_files_and_overrides_alike(config_file: Path, tmp_path: Path) -> None:
    config_file.write_text("rewards: {sources: {own: {weight: 0.5}, polite: {kind: function}}}\n")
    overrides = ["function=regex_match", "arguments.pattern=please", "weight=2"]
    config = load_config(config_file, [f"rewards.sources.polite.{override}" for override in overrides])
    assert list(config.rewards.sources) == ["own", "polite"]
    assert config.rewards.sources["polite"] == RewardSourceConfig(
        kind="function", weight=2.0, function="regex_match", arguments={"pattern": "please"}
    )
    assert config.rewards.weights == {"own": 0.5, "polite": 2.0}
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(resolved) == config


def test_without_named_sources_the_runs_own_reward_model_is_the_only_one(config_file: Path) -> None:
    rewards = load_config(config_file).rewards
    assert (rewards.sources, rewards.weights) == ({}, {"reward_model": 1.0})
    assert rewards.uses_own_model


def test_an_unknown_key_of_a_source_suggests_the_nearest(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.sources\.a\.wieght .* did you mean rewards\.sources\.a\.weight\?"):
        load_config(config_file, ["rewards.sources.a.wieght=2"])


def test_what_was_resolved_reads_back_as_the_same(config_file: Path, tmp_path: Path) -> None:
    config = load_config(
        config_file, ["data.task=files", "data.files.prompts=p.jsonl", "comparison.temperatures=[1,2]"]
    )
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(resolved) == config
    assert "${" not in to_yaml(config)


# --------------------------------------------------------------------------------------------------------- wrong files
def test_a_missing_file_suggests_those_of_a_like_name(tmp_path: Path) -> None:
    for name in ("quickstart.yaml", "other.yaml"):
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=r"is not a file; did you mean .*/quickstart\.yaml\?$"):
        load_config(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigError, match=r"is not a file; choose one of other\.yaml, quickstart\.yaml$"):
        load_config(tmp_path / "zzzz.cfg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {num_steps: 3\n", "is not valid YAML; while parsing a flow mapping"),
        ("- a\n- b\n", "must hold a mapping; write `key: value` lines"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------- keys and values
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.num_step=3", r"ppo\.num_step .* is not a known key; did you mean ppo\.num_steps\?"),
        ("pppo.num_steps=3", r"is not a known key; did you mean ppo"),
        ("learning_rate=1", r"is not a known key; did you mean .*learning_rate\?"),
        ("data.files.promts=x", r"data\.files\.promts .* did you mean data\.files\.prompts\?"),
        ("model.scratch.vocabsize=9", r"did you mean model\.scratch\.vocab_size\?"),
        ("zzz=1", r"zzz \('zzz=1'\) is not a known key; see `--print-config`"),
        ("ppo.num_steps=many", r"ppo\.num_steps \('ppo\.num_steps=many'\) cannot be read: Value 'many'"),
        ("ppo.num_steps=1.5", r"ppo\.num_steps .* cannot be read: Value '1\.5' of type 'float'"),
        ("ppo.num_steps=null", r"ppo\.num_steps .* cannot be read"),
        ("ppo=3", r"ppo \('ppo=3'\) cannot be read"),
        ("seed=true", r"seed .* cannot be read: Value 'True' of type 'bool'"),
        ("comparison.temperatures=0.7", r"comparison\.temperatures .* cannot be read"),
        ("comparison.temperatures=[a]", r"comparison\.temperatures .* a part of it has the wrong type"),
        ("device=tpu", r"device .* cannot be read: Invalid value 'tpu', expected one of \['auto', 'cpu', 'cuda'\]"),
        ("model.path=${nope}", r"model\.path .* Interpolation key 'nope' not found"),
        ("ppo.num_steps", r"override \('ppo\.num_steps'\) must look like key\.path=value"),
        ("=3", r"override \('=3'\) must look like key\.path=value"),
        ("comparison.temperatures=[1", r"override .* is not valid YAML"),
        ("data.task=files", r"data\.task \('files'\) needs the section data\.files; add data\.files"),
        ("data.hh_rlhf.path=x", r"data\.hh_rlhf\.files \(None\) must be given; add it to .* or pass data\.hh_rlhf"),
    ],
)
def test_a_wrong_key_or_type_is_told_in_one_line(config_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(config_file, [override])
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("ppo: {num_stepz: 3}\n")
    with pytest.raises(ConfigError, match=r"ppo\.num_stepz \('.*run\.yaml'\) .* did you mean ppo\.num_steps\?"):
        load_config(path)
