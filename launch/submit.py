"""Run a pipeline as a job of a Ray cluster: ship the checkout, follow the log, return the job's exit status.

What travels is the checkout without what .gitignore names, environments, runs and caches; the cluster's nodes need the
packages (launch/container, launch/constraints) but not this project. Two rules follow from that:

- A configuration is named by a path inside the checkout, and paths in it are relative to the shipped copy. Data outside
  of it must lie where every node sees it, and be named by an absolute path.
- The shipped copy is deleted with the job, so ``output_dir`` must be absolute, on storage that every node sees.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from launch.head import SubmissionError, connect, explained, find_head
from rlhf_ray.config.checks import require_not_negative
from rlhf_ray.config.load import load_config
from rlhf_ray.errors import ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CHECKOUT = Path(__file__).resolve().parent.parent
NOT_SHIPPED = (
    ".git",
    ".venv",
    "__pycache__",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "*.egg-info",
    "/build",
    "/dist",
    "/runs",
    "/wandb",
)
POLL_INTERVAL_S = 1.0
LARGEST_SHOWN = 5


@dataclass(frozen=True)
class JobResources:
    """What the job's driver reserves, on whichever node has it. All zero: it runs beside the head."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    memory_gb: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_not_negative(
            entrypoint__num_cpus=self.num_cpus, entrypoint__num_gpus=self.num_gpus, entrypoint__memory_gb=self.memory_gb
        )

    def arguments(self) -> dict[str, Any]:
        """As Ray's job client takes them."""
        asked = {
            "entrypoint_num_cpus": self.num_cpus,
            "entrypoint_num_gpus": self.num_gpus,
            "entrypoint_memory": int(self.memory_gb * 2**30),
            "entrypoint_resources": dict(self.custom),
        }
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True)
class Job:
    """How a job is run: what travels with it, what it may see, what its driver reserves."""

    working_dir: Path = CHECKOUT
    runtime_env: Mapping[str, Any] = field(default_factory=dict)  # added to what we send: pip, py_modules, ...
    environment: Sequence[str] = ()  # NAME (its value here) or NAME=VALUE; readable in the dashboard
    resources: JobResources = field(default_factory=JobResources)
    submission_id: str | None = None


@dataclass(frozen=True)
class JobOutcome:
    submission_id: str
    status: Literal["SUBMITTED", "SUCCEEDED", "FAILED", "STOPPED"]
    exit_code: int  # the job's own; 1 where it had none; 0 for a job that was submitted and not followed
    message: str


def submit(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    job: Job | None = None,
    address: str | None = None,
    follow: bool = True,
    write: Callable[[str], object] = sys.stdout.write,
) -> JobOutcome:
    """Submit ``pipeline CONFIG key=value ...`` as a job.

    Args:
        config_path: a file inside the job's ``working_dir``.
        overrides: ``key.path=value``, as on the command line.
        job: how it is run.
        address: the cluster's dashboard; see `launch.head.find_head` for what None means.
        follow: write the job's log until it ends; otherwise return as soon as the cluster has the job.
        write: receives the log in pieces.

    Raises:
        ConfigError: the configuration is wrong, or cannot work in a job.
        SubmissionError: no head at the address, or the head refuses.
    """
    job = job or Job()
    entry_point = pipeline_command(config_path, overrides, working_dir=job.working_dir)
    return submit_command(entry_point, job=job, address=address, follow=follow, write=write)


def pipeline_command(config_path: str | Path, overrides: Sequence[str], *, working_dir: Path = CHECKOUT) -> str:
    """Return the shell command that runs the pipeline from the shipped copy; no script needs to be installed there.

    Raises ConfigError here, in seconds, for whatever the pipeline would refuse on the cluster.
    """
    config = load_config(config_path, overrides)
    path, root = Path(config_path).resolve(), working_dir.resolve()
    if not path.is_relative_to(root):
        raise ConfigError(
            "CONFIG", str(config_path), f"must lie inside {root}, which the cluster gets", "copy it there"
        )
    if not Path(config.output_dir).is_absolute():
        raise ConfigError(
            "output_dir",
            config.output_dir,
            "must be absolute in a job, for the shipped copy is deleted with it",
            "pass output_dir=/STORAGE/THAT/ALL/NODES/SEE/NAME",
        )
    return shlex.join(["python", "-m", "launch.cli", "pipeline", str(path.relative_to(root)), *overrides])


def submit_command(
    entry_point: str,
    *,
    job: Job | None = None,
    address: str | None = None,
    follow: bool = True,
    write: Callable[[str], object] = sys.stdout.write,
) -> JobOutcome:
    """Submit any shell command, run in the shipped copy of the working directory. The rest is as for `submit`."""
    job = job or Job()
    runtime_env = environment_of(job)
    head = find_head(address)
    client = connect(head)
    with explained(head), told_what_is_large(job.working_dir):
        submission_id: str = client.submit_job(
            entrypoint=entry_point,
            runtime_env=runtime_env,
            submission_id=job.submission_id,
            **job.resources.arguments(),
        )
    write(f"job {submission_id} at {head.address}: {entry_point}\n")
    if not follow:
        write(f"follow it with: rlhf-ray jobs logs {submission_id} --follow\n")
        return JobOutcome(submission_id=submission_id, status="SUBMITTED", exit_code=0, message="")
    return asyncio.run(follow_job(client, submission_id, write=write))


def environment_of(job: Job) -> dict[str, Any]:
    """The runtime environment: the shipped folder, the variables, and what the job adds or overrides."""
    ours = {"working_dir": str(job.working_dir), "excludes": list(NOT_SHIPPED)}
    added = dict(job.runtime_env)
    variables = {**added.pop("env_vars", {}), **environment_by_name(job.environment)}
    excludes = [*ours["excludes"], *added.pop("excludes", [])]
    return {**ours, **added, "excludes": excludes, "env_vars": variables}


def environment_by_name(names: Sequence[str]) -> dict[str, str]:
    """Return NAME=VALUE as given and NAME as it is here; one that is not set is an error rather than an empty value."""
    given = dict(name.split("=", 1) for name in names if "=" in name)
    wanted = [name for name in names if "=" not in name]
    missing = [name for name in wanted if name not in os.environ]
    if missing:
        raise SubmissionError(f"--env ({', '.join(missing)}) must name variables that are set here; export them first")
    return {**{name: os.environ[name] for name in wanted}, **given}


def read_runtime_env(path: Path) -> dict[str, Any]:
    """Read a runtime environment from a YAML or JSON file. Raises ConfigError when it is none."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("--runtime-env", str(path), f"cannot be read ({error})", "give a YAML file") from error
    if not isinstance(content, dict):
        raise ConfigError("--runtime-env", str(path), "must be a mapping", "see Ray's page on runtime environments")
    return content


def custom_resources(pairs: Sequence[str]) -> dict[str, float]:
    """Read NAME=AMOUNT. Raises ConfigError for anything else."""
    found = {}
    for pair in pairs:
        name, _, amount = pair.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise ConfigError("--resource", pair, "must be NAME=AMOUNT", "try --resource trainer=1") from None
    return found


@contextmanager
def told_what_is_large(working_dir: Path) -> Iterator[None]:
    """Where Ray finds the folder too large to ship, say which of its parts are."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "exceeds the maximum size" not in str(error):
            raise
        largest = sorted(sizes_of_what_is_shipped(working_dir).items(), key=lambda item: -item[1])[:LARGEST_SHOWN]
        shown = ", ".join(f"{name} ({size / 2**20:.0f} MiB)" for name, size in largest)
        raise SubmissionError(
            f"{working_dir} is too large to ship with the job ({str(error).splitlines()[0]}). Largest: {shown}\n"
            "  - name what the job does not need in .gitignore, or as `excludes` in a file given with --runtime-env\n"
            "  - data and models belong on storage that all nodes see, named by absolute paths"
        ) from error


def sizes_of_what_is_shipped(working_dir: Path) -> dict[str, int]:
    """Bytes of each entry of the folder that is not always left out."""
    left_out = {name.strip("/") for name in NOT_SHIPPED}
    return {
        entry.name: sum(path.stat().st_size for path in all_files(entry))
        for entry in working_dir.iterdir()
        if entry.name not in left_out
    }


def all_files(entry: Path) -> Iterable[Path]:
    return [entry] if entry.is_file() else (path for path in entry.rglob("*") if path.is_file())


async def follow_job(
    client: JobSubmissionClient, submission_id: str, *, write: Callable[[str], object] = sys.stdout.write
) -> JobOutcome:
    """Write the job's log as it grows and return how the job ended. Interrupted, it leaves the job running."""
    try:
        async for piece in client.tail_job_logs(submission_id):
            write(piece)
    except asyncio.CancelledError:
        write(f"\nno longer following; the job goes on. To end it: rlhf-ray jobs stop {submission_id}\n")
        raise
    except RuntimeError as error:
        write(f"\nthe log's connection broke ({error}); waiting for the job to end\n")
    while not client.get_job_status(submission_id).is_terminal():
        await asyncio.sleep(POLL_INTERVAL_S)
    return outcome(client, submission_id)


def outcome(client: JobSubmissionClient, submission_id: str) -> JobOutcome:
    info = client.get_job_info(submission_id)
    succeeded = info.status.value == "SUCCEEDED"
    code = info.driver_exit_code
    return JobOutcome(
        submission_id=submission_id,
        status=info.status.value,
        # A job that was stopped, or never started, has no code of its own or that of its signal.
        exit_code=0 if succeeded else (code if code and code > 0 else 1),
        message=info.message or "",
    )
