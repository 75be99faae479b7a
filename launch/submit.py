"""Run a pipeline as a job of a Ray cluster: ship the checkout, follow the log, return the job's exit status.

What travels is the checkout without what .gitignore names, environments, runs and caches; the cluster's nodes need the
packages (launch/container, launch/constraints) but not this project. Two rules follow from that:

- A configuration is named by a path inside the checkout, and paths in it are relative to the shipped copy. Data outside
  of it must lie where every node sees it, and be named by an absolute path.
- The shipped copy is deleted with the job, so ``output_dir`` must be absolute, on storage that every node sees.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from rlhf_ray.config.load import load_config
from rlhf_ray.errors import ConfigError, RlhfError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CHECKOUT = Path(__file__).resolve().parent.parent
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
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
CONNECT_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 1.0


class SubmissionError(RlhfError):
    """A job cannot be submitted: the message holds what was tried and what to do."""


@dataclass(frozen=True)
class Head:
    """Where jobs are sent to, and who said so."""

    address: str  # http://host:port of the cluster's dashboard
    source: str


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
    address: str | None = None,
    follow: bool = True,
    pass_env: Sequence[str] = (),
    working_dir: Path = CHECKOUT,
    write: Callable[[str], object] = sys.stdout.write,
) -> JobOutcome:
    """Submit ``pipeline CONFIG key=value ...`` as a job.

    Args:
        config_path: a file inside ``working_dir``.
        overrides: ``key.path=value``, as on the command line.
        address: the cluster's dashboard; see `find_head` for what None means.
        follow: write the job's log until it ends; otherwise return as soon as the cluster has the job.
        pass_env: names of variables of this process that the job gets too. Their values can be read in the dashboard.
        working_dir: the folder that is shipped.
        write: receives the log in pieces.

    Raises:
        ConfigError: the configuration is wrong, or cannot work in a job.
        SubmissionError: no head at the address, or the head refuses.
    """
    entry_point = pipeline_command(config_path, overrides, working_dir=working_dir)
    return submit_command(
        entry_point, address=address, follow=follow, pass_env=pass_env, working_dir=working_dir, write=write
    )


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
    address: str | None = None,
    follow: bool = True,
    pass_env: Sequence[str] = (),
    working_dir: Path = CHECKOUT,
    write: Callable[[str], object] = sys.stdout.write,
) -> JobOutcome:
    """Submit any shell command, run in the shipped copy of ``working_dir``. Arguments and errors as for `submit`."""
    runtime_env = {
        "working_dir": str(working_dir),
        "excludes": list(NOT_SHIPPED),
        "env_vars": environment_by_name(pass_env),
    }
    head = find_head(address)
    client = connect(head)
    with explained(head):
        submission_id: str = client.submit_job(entrypoint=entry_point, runtime_env=runtime_env)
    write(f"job {submission_id} at {head.address}: {entry_point}\n")
    if not follow:
        return JobOutcome(submission_id=submission_id, status="SUBMITTED", exit_code=0, message="")
    return asyncio.run(follow_job(client, submission_id, write=write))


def environment_by_name(names: Sequence[str]) -> dict[str, str]:
    """Return these variables of this process; one that is not set is an error rather than an empty value."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise SubmissionError(
            f"pass_env ({', '.join(missing)}) must name variables that are set here; export them first"
        )
    return {name: os.environ[name] for name in names}


def find_head(address: str | None) -> Head:
    """Return where to send jobs: the address given, RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the default port here."""
    candidates = [(address, "the address given"), *((os.environ.get(name), name) for name in ADDRESS_VARIABLES)]
    for value, source in candidates:
        if value and value != "auto":
            return Head(value if "://" in value else f"http://{value}", source)
    return Head(DEFAULT_ADDRESS, "the default")


def connect(head: Head) -> JobSubmissionClient:
    """Open the cluster's job interface, or say within seconds why it cannot be opened."""
    check_that_something_listens(head)
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # else it tells of every closed socket
    with explained(head), hidden_variables(ADDRESS_VARIABLES):  # Ray would let them win over an explicit address
        return JobSubmissionClient(head.address)


def check_that_something_listens(head: Head) -> None:
    url = urlsplit(head.address)
    if url.scheme not in ("http", "https"):
        raise SubmissionError(
            f"{head.address} ({head.source}) must be the http address of the cluster's dashboard; "
            "try http://HEAD:8265, HEAD being the head node's name"
        )
    if urllib.request.getproxies():
        return  # the way there leads through a proxy, which the client knows how to use
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise no_head(head, error) from error


def no_head(head: Head, error: Exception) -> SubmissionError:
    return SubmissionError(
        f"no Ray head answers at {head.address} ({head.source}): {error}\n"
        "  - jobs go to the dashboard's port (8265 unless set), not to the port that nodes join (6379)\n"
        "  - give the address, or export RAY_API_SERVER_ADDRESS=http://HEAD:8265\n"
        "  - a head on this machine: ray start --head --block"
    )


@contextmanager
def explained(head: Head) -> Iterator[None]:
    """Turn what the job interface raises into errors with a remedy."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        raise SubmissionError(
            f"the head at {head.address} refuses this client (RAY_AUTH_MODE here: {mode}): "
            f"{str(error).splitlines()[0]}\n"
            "  - RAY_AUTH_MODE (token or disabled) must be the same for the head, its drivers and this command\n"
            "  - with token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH must hold the head's token"
        ) from error
    except ConnectionError as error:
        raise no_head(head, error) from error
    except RuntimeError as error:
        raise SubmissionError(f"the head at {head.address} did not take the job: {error}") from error


@contextmanager
def hidden_variables(names: Sequence[str]) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


async def follow_job(
    client: JobSubmissionClient, submission_id: str, *, write: Callable[[str], object] = sys.stdout.write
) -> JobOutcome:
    """Write the job's log as it grows and return how the job ended. Interrupted, it leaves the job running."""
    try:
        async for piece in client.tail_job_logs(submission_id):
            write(piece)
    except asyncio.CancelledError:
        write(f"\nno longer following; the job goes on. To end it: ray job stop {submission_id}\n")
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
