"""Every command and every path that the README names."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.config.load import load_config
from rlhf_ray.rewards.verifiable import BUILT_IN
from tests.layout import layout

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text()
COMMANDS = sorted({match.strip() for match in re.findall(r"^ {4}(rlhf-ray .*?)(?:\s+#.*)?$", README, re.MULTILINE)})
SCRIPTS = sorted(set(re.findall(r"\./(launch/\w+\.sh)", README)))
PATHS = sorted(set(re.findall(r"`((?:configs|benchmarks|launch|docs|tests|rlhf_ray|actors)/[\w./]+)`", README)))


def test_the_readme_has_commands_for_every_stage() -> None:
    named = {shlex.split(command)[1] for command in COMMANDS}
    assert named == {
        "pipeline",
        "sft",
        "reward",
        "ppo",
        "dpo",
        "raft",
        "evaluate",
        "report",
        "generate",
        "replay",
        "submit",
        "feedback",
    }


def test_the_feedback_commands_of_the_readme_do_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "annotator": "ann"}\n')
    said = []
    for command in (each for each in README.splitlines() if each.startswith("    rlhf-ray feedback")):
        outcome = CliRunner().invoke(app, shlex.split(command)[1:])
        assert outcome.exit_code == 0, outcome.output
        said += outcome.output.splitlines()
    assert said == [
        "1 items, 1 new judgements: labels.db",
        "1 items, 1 judgements that count, 1 ever made",
        "verdicts: 1 ranked, 0 all bad, 0 skipped, 0 flagged",
        "ann (unknown): 1 judgements",
        "agreement: no pair was judged by two annotators",
        "1 records: labels.parquet",
    ]


@pytest.mark.parametrize("command", [command for command in COMMANDS if " feedback " not in command])
def test_every_command_of_the_readme_is_understood(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(CHECKOUT)
    verb, directory, *settings = shlex.split(command)[1:]
    if verb == "replay":  # its first argument is what a run has left
        (tmp_path / directory).mkdir(parents=True)
        shutil.copy("configs/quickstart.yaml", tmp_path / directory / "config.yaml")
        directory = str(tmp_path / directory)
    outcome = CliRunner().invoke(app, [verb, directory, *settings, "--print-config"])
    assert outcome.exit_code == 0, outcome.output
    assert "ppo:" in outcome.output


@pytest.mark.parametrize("path", SCRIPTS + PATHS)
def test_every_path_of_the_readme_exists(path: str) -> None:
    assert (CHECKOUT / path).exists()


def test_settings_that_the_readme_names_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    shown = CliRunner().invoke(app, ["pipeline", "configs/quickstart.yaml", "--print-config"]).output
    sections = "model|training|generation|reference|reward_server|reward_model|sft|ppo"
    for name in sorted(set(re.findall(rf"`((?:{sections})(?:\.\w+)+)", README))):
        assert re.search(rf"^\s*{name.rsplit('.', 1)[-1]}:", shown, re.MULTILINE), name


def test_the_sources_of_rewards_that_the_readme_shows_are_a_configuration(tmp_path: Path) -> None:
    block = re.search(r"^( {4}rewards:\n(?: {6,}.*\n)+)", README, re.MULTILINE)
    assert block is not None
    (tmp_path / "run.yaml").write_text(textwrap.dedent(block[1]))
    sources = load_config(tmp_path / "run.yaml").rewards.sources
    assert {name: source.kind for name, source in sources.items()} == {
        "learned": "model",
        "right": "function",
        "mine": "function",
        "theirs": "http",
        "steps": "model",
    }
    assert sources["steps"].arguments == {"step_separator": "\n\n"}
    assert all(f"`{name}`" in README for name in BUILT_IN)


def test_the_readme_lists_every_module_with_its_first_sentence() -> None:
    missing = [line for line in layout() if line not in README]
    assert not missing, "python tests/layout.py prints the lines for the README"


def test_the_measured_numbers_are_those_of_the_records() -> None:
    check = [sys.executable, "benchmarks/readme_tables.py", "--check"]
    assert subprocess.run(check, cwd=CHECKOUT, check=False).returncode == 0, "run benchmarks/readme_tables.py"
