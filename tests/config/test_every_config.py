"""Every preset that people run loads, passes its own rules, and reads back as what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.config.load import load_config, to_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OTHERS = {path for folder in ("constitutions", "suites") for path in (CONFIGS / folder).glob("*.yaml")}
PRESETS = sorted(set(CONFIGS.rglob("*.yaml")) - OTHERS)


def test_there_are_presets() -> None:
    assert CONFIGS / "quickstart.yaml" in PRESETS


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_preset_loads_and_reads_back_as_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(resolved) == config


def test_no_two_presets_write_to_the_same_directory() -> None:
    assert len({load_config(path).output_dir for path in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_print_config_shows_what_would_run_and_stops(path: Path) -> None:
    done = CliRunner().invoke(app, ["pipeline", str(path), "ppo.num_steps=17", "--print-config"])
    assert done.exit_code == 0
    assert done.stdout == to_yaml(load_config(path, ["ppo.num_steps=17"]))
    assert "  num_steps: 17\n" in done.stdout
