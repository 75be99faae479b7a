"""Submitting a job: what is refused at the door, and one real head that runs jobs to their exit codes."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import ray_jobs, submit
from launch.head import DEFAULT_ADDRESS, SubmissionError, connect, find_head, use_the_token_that_is_there
from launch.submit import (
    CHECKOUT,
    NOT_SHIPPED,
    Job,
    JobResources,
    custom_resources,
    environment_by_name,
    environment_of,
    pipeline_command,
    read_runtime_env,
    submit_command,
)
from rlhf_ray.errors import ConfigError
from tests.clusters import short_temp_dir
from tests.small import SMALL

START_TIMEOUT_S = 90.0
# On a programmatic reward: GRPO without a reward model and without a critic, RAFT, best of n; and DPO on comparisons.
EVERY_METHOD = (
    "methods=[ppo,dpo,raft,best_of_n]",
    "evaluation.best_of=2",
    "ppo.advantages=grpo",
    "ppo.responses_per_prompt=4",
    "generation.num_engines=1",
    "rewards.sources.short.kind=function",
    "rewards.sources.short.function=length_at_most",
    "rewards.sources.short.arguments.limit=12",
)


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


# ------------------------------------------------------------------------------------------------------- at the door
def test_the_pipeline_is_named_relative_to_what_is_shipped_and_its_overrides_survive_the_shell(tmp_path: Path) -> None:
    config = tmp_path / "configs" / "tiny.yaml"
    config.parent.mkdir()
    config.write_text("output_dir: /shared/tiny\n")
    command = pipeline_command(config, ["ppo.num_steps=2", "name=a b"], working_dir=tmp_path)
    assert command == "python -m launch.cli pipeline configs/tiny.yaml ppo.num_steps=2 'name=a b'"


def test_a_config_that_the_cluster_would_not_get_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="is not a file"):
        pipeline_command(outside, [])
    outside.write_text("output_dir: /shared/mine\n")
    with pytest.raises(ConfigError, match=r"must lie inside .* copy it there"):
        pipeline_command(outside, [])


def test_a_run_whose_results_would_go_with_the_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("output_dir: runs/a\n")
    with pytest.raises(ConfigError, match=r"output_dir \('runs/a'\) must be absolute in a job"):
        pipeline_command(tmp_path / "a.yaml", [], working_dir=tmp_path)
    pipeline_command(tmp_path / "a.yaml", ["output_dir=/shared/a"], working_dir=tmp_path)


def test_what_the_pipeline_would_refuse_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("output_dir: /shared/a\n")
    with pytest.raises(ConfigError, match=r"ppo\.num_stepz .* did you mean ppo\.num_steps"):
        pipeline_command(tmp_path / "a.yaml", ["ppo.num_stepz=2"], working_dir=tmp_path)


def test_variables_are_passed_by_name_and_a_missing_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETING", "hello")
    monkeypatch.delenv("ABSENT", raising=False)
    assert environment_by_name(["GREETING", "A=b=c"]) == {"GREETING": "hello", "A": "b=c"}
    with pytest.raises(SubmissionError, match=r"--env \(ABSENT\) must name variables that are set here"):
        environment_by_name(["GREETING", "ABSENT"])


def test_the_address_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_head(None).address == DEFAULT_ADDRESS
    monkeypatch.setenv("RAY_ADDRESS", "two:6379")
    assert find_head(None).address == "http://two:6379"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://one:8265")
    assert find_head(None).address == "http://one:8265"
    assert find_head("three:8265").address == "http://three:8265"


def test_a_head_that_does_not_answer_is_reported_with_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(SubmissionError, match=r"no Ray head answers") as caught:
        connect(find_head(None))
    assert f"http://127.0.0.1:{port} (RAY_ADDRESS)" in str(caught.value)
    assert "ray start --head --block" in str(caught.value)


def test_an_address_for_clients_is_refused() -> None:
    with pytest.raises(SubmissionError, match="try http://HEAD:8265"):
        submit_command("true", address="ray://head:10001")


def test_a_token_at_hand_is_used_unless_something_else_was_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_the_token_that_is_there()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    use_the_token_that_is_there()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    use_the_token_that_is_there()
    assert os.environ["RAY_AUTH_MODE"] == "token"


# ----------------------------------------------------------------------------------------------------- a client of ours
class FakeClient:
    """Takes one job; its log grows by a line a look, and it ends as it is told to."""

    def __init__(self) -> None:
        self.submitted: dict[str, Any] = {}
        self.refusal: Exception | None = None
        self.ends = ["RUNNING", "SUCCEEDED"]
        self.stopped = False

    def submit_job(self, **arguments: Any) -> str:
        if self.refusal is not None:
            raise self.refusal
        self.submitted = arguments
        return "job_1"

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for piece in ("one\n", "two\n"):
            yield piece

    def get_job_status(self, submission_id: str) -> Any:
        if submission_id != "job_1":
            raise RuntimeError("Request failed with status code 404: Job does not exist.")
        name = "STOPPED" if self.stopped else self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        return SimpleNamespace(value=name, is_terminal=lambda: name in ("SUCCEEDED", "FAILED", "STOPPED"))

    def get_job_info(self, submission_id: str) -> Any:
        return SimpleNamespace(status=self.get_job_status(submission_id), driver_exit_code=0, message=None)

    def stop_job(self, submission_id: str) -> None:
        self.get_job_status(submission_id)
        self.stopped = True

    def list_jobs(self) -> list[Any]:
        status = SimpleNamespace(value="RUNNING")
        row = {"status": status, "end_time": None, "entrypoint": "python x"}
        return [
            SimpleNamespace(submission_id="late", start_time=9000, **row),
            SimpleNamespace(submission_id=None, start_time=1000, **row),
            SimpleNamespace(submission_id="early", start_time=2000, **{**row, "end_time": 5000}),
        ]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    for module in (submit, ray_jobs):
        monkeypatch.setattr(module, "connect", lambda head: fake)
        monkeypatch.setattr(module, "POLL_INTERVAL_S", 0.0)
    return fake


def test_a_job_takes_its_resources_its_variables_and_its_runtime_environment_along(
    client: FakeClient, tmp_path: Path
) -> None:
    (tmp_path / "env.yaml").write_text("pip: [emoji]\nenv_vars: {A: '1', B: '2'}\nexcludes: [big]\n")
    job = Job(
        working_dir=tmp_path,
        runtime_env=read_runtime_env(tmp_path / "env.yaml"),
        environment=["B=3"],
        resources=JobResources(2.0, 0.0, 1.5, custom_resources(["trainer=1"])),
        submission_id="mine",
    )
    said: list[str] = []
    ended = submit_command("true", job=job, follow=False, write=said.append)
    assert client.submitted == {
        "entrypoint": "true",
        "submission_id": "mine",
        "entrypoint_num_cpus": 2.0,
        "entrypoint_memory": 1.5 * 2**30,
        "entrypoint_resources": {"trainer": 1.0},
        "runtime_env": {
            "working_dir": str(tmp_path),
            "excludes": [*NOT_SHIPPED, "big"],
            "pip": ["emoji"],
            "env_vars": {"A": "1", "B": "3"},
        },
    }
    assert (ended.status, ended.exit_code) == ("SUBMITTED", 0)
    assert said[-1] == "follow it with: rlhf-ray jobs logs job_1 --follow\n"


def test_a_job_is_followed_to_its_end(client: FakeClient) -> None:
    said: list[str] = []
    ended = submit_command("true", write=said.append)
    assert said[1:] == ["one\n", "two\n"]
    assert ended.status == "SUCCEEDED"


def test_what_is_not_a_runtime_environment_or_a_resource_is_refused(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("- pip\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        read_runtime_env(tmp_path / "env.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_runtime_env(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"--resource \('trainer'\) must be NAME=AMOUNT"):
        custom_resources(["trainer"])
    with pytest.raises(ConfigError, match=r"entrypoint\.num_gpus"):
        JobResources(num_gpus=-1)
    assert environment_of(Job())["env_vars"] == {}


def test_a_folder_that_is_too_large_is_refused_with_what_makes_it_so(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights").write_bytes(b"0" * 3 * 2**20)
    (tmp_path / "small").write_bytes(b"0")
    (tmp_path / "runs").mkdir()
    client.refusal = ValueError("Package size (600MiB) exceeds the maximum size of 500MiB. More words")
    with pytest.raises(SubmissionError, match=r"Largest: models \(3 MiB\), small \(0 MiB\)\n.*\.gitignore"):
        submit_command("true", job=Job(working_dir=tmp_path))


def test_jobs_are_listed_by_their_start_and_drivers_that_nobody_submitted_are_left_out(client: FakeClient) -> None:
    rows = ray_jobs.list_jobs(None, now=lambda: 19.0)
    assert [(row.submission_id, row.seconds) for row in rows] == [("early", 3.0), ("late", 10.0)]
    lines = ray_jobs.table(rows)
    assert len(lines) == 3
    assert lines[1].split() == ["early", "RUNNING", "1970-01-01", "00:00:02", "3", "s", "python", "x"]


def test_a_job_that_is_stopped_is_waited_for_and_an_unknown_one_is_an_error(client: FakeClient) -> None:
    with pytest.raises(SubmissionError, match=r"knows no job job_2; `rlhf-ray jobs list`"):
        ray_jobs.stop("job_2", address=None)
    assert ray_jobs.stop("job_1", address=None).status == "STOPPED"


def test_a_log_that_is_followed_ends_with_its_job(client: FakeClient) -> None:
    said: list[str] = []
    ended = ray_jobs.write_logs("job_1", address=None, follow=True, write=said.append)
    assert said == ["one\n", "two\n"]
    assert ended is not None
    assert ended.status == "SUCCEEDED"


# ---------------------------------------------------------------------------------------------------------- a real head
@dataclass(frozen=True)
class LocalHead:
    address: str  # where jobs are sent
    join_address: str
    temp_dir: Path
    environment: dict[str, str]

    def submit(self, entry_point: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Submit from a process of its own: Ray reads its authentication settings once per process."""
        program = (
            "import sys; from launch.submit import Job, submit_command; "
            "o = submit_command(sys.argv[1], address=sys.argv[2], job=Job(environment=['GREETING'])); "
            "print('ended', o.status); sys.exit(o.exit_code)"
        )
        return subprocess.run(
            [sys.executable, "-c", program, entry_point, self.address],
            cwd=CHECKOUT,
            env={**self.environment, "GREETING": "hello", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[LocalHead]:
    """A head that asks for a token, as a child of this process; it is ended by its process id, never by name."""
    port, dashboard, agent, agent_grpc, client, metrics, environments = free_ports(7)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # jobs find the environment's commands
    environment = {
        **os.environ,
        "PATH": programs,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    with short_temp_dir() as temp_dir:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--num-cpus=2", "--num-gpus=0", f"--object-store-memory={128 * 2**20}", f"--temp-dir={temp_dir}"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--port={port}", f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
            *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"),
            f"--runtime-env-agent-port={environments}",
        ]
        log = temp_dir / "head.log"
        with log.open("w") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_it_listens(dashboard, process, log)
            yield LocalHead(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", temp_dir, environment)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        left = wait_until_processes_end(temp_dir)
    assert not left, f"still running: {left}"


def wait_until_it_listens(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"the head did not come up: {log.read_text()}")


def wait_until_processes_end(temp_dir: Path) -> list[str]:
    """Return the command lines that still name the head's folder, after some seconds of patience."""
    deadline = time.monotonic() + 20.0
    while True:
        left = [line for line in command_lines() if str(temp_dir) in line]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.3)


def command_lines() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue


@pytest.mark.integration
def test_a_job_runs_from_the_shipped_copy_in_the_cluster_that_took_it(head: LocalHead) -> None:
    entry_point = (
        "python -c \"import os, ray, launch; ray.init(address=os.environ['RAY_ADDRESS'], log_to_driver=False); "
        "print('code', launch.__file__); print('nodes', len(ray.nodes())); print('says', os.environ['GREETING']); "
        "print('shipped', *sorted(os.listdir('.')))\""
    )
    done = head.submit(entry_point)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert Path(said["code"]).is_relative_to(head.temp_dir)
    assert said["nodes"] == "1"
    assert said["says"] == "hello"
    assert said["ended"] == "SUCCEEDED"
    shipped = set(said["shipped"].split())
    assert {"pyproject.toml", "rlhf_ray", "actors", "launch"} <= shipped
    assert not shipped & {".git", ".venv", "runs", "wandb", ".mypy_cache"}


@pytest.mark.integration
def test_the_exit_code_is_the_job_s_own_and_its_log_is_followed(head: LocalHead) -> None:
    done = head.submit("echo first; sleep 1; echo second; exit 7")
    assert done.returncode == 7, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.index("first") < lines.index("second") < lines.index("ended FAILED")


@pytest.mark.integration
def test_a_head_that_asks_for_a_token_refuses_with_a_remedy(head: LocalHead) -> None:
    done = head.submit("true", RAY_AUTH_MODE="disabled")
    assert done.returncode == 1
    assert "refuses this client (RAY_AUTH_MODE here: disabled)" in done.stderr
    assert "must be the same for the head, its drivers and this command" in done.stderr


@pytest.mark.integration
def test_jobs_are_listed_stopped_and_their_logs_read(head: LocalHead) -> None:
    jobs = [sys.executable, "-m", "launch.cli", "jobs"]
    there = ["--address", head.address]
    program = (
        "import sys; from launch.submit import Job, submit_command; "
        "submit_command('echo begun; sleep 600', address=sys.argv[1], job=Job(submission_id='sleeper'), follow=False)"
    )
    assert run_on(head, [sys.executable, "-c", program, head.address]).returncode == 0
    stopped = run_on(head, [*jobs, "stop", "sleeper", *there])
    assert stopped.stdout == "job sleeper: stopped\n", stopped.stderr
    listed = run_on(head, [*jobs, "list", *there])
    assert any(line.split()[:2] == ["sleeper", "STOPPED"] for line in listed.stdout.splitlines()), listed.stderr
    unknown = run_on(head, [*jobs, "logs", "nobody", *there])
    assert unknown.returncode == 2
    assert "knows no job nobody" in unknown.stderr


@pytest.mark.integration
def test_waiting_for_nodes_finds_those_of_a_real_cluster(head: LocalHead) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.nodes", "1"],
        cwd=CHECKOUT,
        env={**head.environment, "RAY_ADDRESS": head.join_address},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 of 1 nodes are there"]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pipeline_of_every_method_is_submitted_to_a_local_head_and_followed_to_its_report(
    head: LocalHead, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "launch.cli", "submit", "configs/quickstart.yaml", *SMALL, *EVERY_METHOD]
    done = run_on(head, [*command, f"output_dir={tmp_path / 'run'}", "--address", head.address])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[7/7] Evaluation" in done.stdout
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["seconds"]) == ["model", "sft", "comparison", "ppo", "dpo", "raft", "evaluation"]
    assert summary["reward_model"] is None
    for measure in ("gold", "score"):
        means = {name: found["mean"] for name, found in summary[measure].items()}
        assert means.keys() == {"sft", "ppo", "dpo", "raft", "best_of_n"}
        assert all(0.0 <= mean <= 1.0 for mean in means.values())
    assert summary["kl_per_response"]["best_of_n"]["mean"] == pytest.approx(math.log(2) - 0.5)
    assert summary["kl_per_response"]["sft"]["mean"] == pytest.approx(0.0, abs=1e-3)
    steps = [json.loads(line) for line in (tmp_path / "run" / "dpo" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["dpo_heldout/loss"] == pytest.approx(math.log(2), abs=1e-4)  # the policy is its reference
    best = [json.loads(line) for line in (tmp_path / "run" / "raft" / "best.jsonl").read_text().splitlines()]
    assert len(best) == 16
    assert all(row["score"] >= row["mean_score"] for row in best)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_s_own_job_submit_runs_the_installed_command(head: LocalHead, tmp_path: Path) -> None:
    job = ["--", "rlhf-ray", "sft", "configs/quickstart.yaml", *SMALL, f"output_dir={tmp_path / 'run'}"]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address]
    excluded = json.dumps({"excludes": list(NOT_SHIPPED)})
    done = run_on(head, [*ray, "--working-dir", ".", "--runtime-env-json", excluded, *job])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "sft" / "artefact.json").is_file()


def run_on(head: LocalHead, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as a user of the head would: with its token, and nothing else that points to a cluster."""
    return subprocess.run(
        command, cwd=CHECKOUT, env=head.environment, capture_output=True, text=True, check=False, timeout=800
    )
