"""Every command and every path that the README names, and every command of the pages in docs/."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.core import TyperGroup as Group
from typer.main import get_command
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.config.load import load_config
from rlhf_ray.rewards.verifiable import BUILT_IN
from tests.layout import PAGE, page

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text()
COMMANDS = sorted({match.strip() for match in re.findall(r"^ {4}(rlhf-ray .*?)(?:\s+#.*)?$", README, re.MULTILINE)})
SHOWN = re.compile(r"^ {4}(rlhf-ray .*?)(?:\s+#.*)?$", re.MULTILINE)
PAGES = sorted((CHECKOUT / "docs").glob("*.md"))
EVERY = sorted({*COMMANDS, *(command for page in PAGES for command in SHOWN.findall(page.read_text()))})
# These have no configuration.
ON_STORES = re.compile(
    r" (feedback|label|jobs|judge +(review|agreement|adopt)|metrics|scale|status|view|chat|drift|resume-paused) "
)
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
        "iterate",
        "evaluate",
        "report",
        "generate",
        "replay",
        "export",
        "submit",
        "jobs",
        "doctor",
        "plan",
        "feedback",
        "label",
        "judge",
        "constitution",
        "metrics",
        "scale",
        "status",
        "view",
        "chat",
        "drift",
        "resume-paused",
    }


def test_the_feedback_commands_of_the_readme_do_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("items.jsonl").write_text('{"prompt": "d", "responses": ["e", "f"]}\n')
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "annotator": "ann"}\n')
    said = []
    for command in (each for each in README.splitlines() if each.startswith("    rlhf-ray feedback")):
        outcome = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
        assert outcome.exit_code == 0, outcome.output
        said += outcome.output.splitlines()
    assert said == [
        "1 items, 1 new judgements: labels.db",
        "1 items, 1 of them new, 0 with a known answer: labels.db",
        "2 items, 1 judgements that count, 1 ever made",
        "verdicts: 1 ranked, 0 all bad, 0 skipped, 0 flagged",
        "ann (unknown): 1 judgements",
        "agreement: no pair was judged by two annotators",
        "1 records: labels.parquet",
    ]


@pytest.mark.parametrize("command", EVERY)
def test_every_command_and_its_options_exist(command: str) -> None:
    name, *words = shlex.split(command)
    found = get_command(app)
    context = found.make_context(name, words)
    while isinstance(found, Group):
        _, inner, words = found.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        found, context = inner, inner.make_context(inner.name, words, parent=context)  # no option is unknown


@pytest.mark.parametrize("command", [command for command in EVERY if not ON_STORES.search(command)])
def test_every_command_of_the_readme_is_understood(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(CHECKOUT)
    arguments = shlex.split(command)[1:]
    if arguments[0] in ("replay", "export"):  # its first argument is what a run has left
        directory = tmp_path / arguments[1]
        directory.mkdir(parents=True)
        shutil.copy("configs/quickstart.yaml", directory / "config.yaml")
        arguments[1] = str(directory)
    outcome = CliRunner().invoke(app, [*arguments, "--print-config"])
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


def test_every_module_is_listed_with_its_first_sentence() -> None:
    assert PAGE.read_text() == page(), "python tests/layout.py writes it again"


def test_the_measured_numbers_are_those_of_the_records() -> None:
    check = [sys.executable, "benchmarks/readme_tables.py", "--check"]
    assert subprocess.run(check, cwd=CHECKOUT, check=False).returncode == 0, "run benchmarks/readme_tables.py"
