"""The head of a Ray cluster as jobs see it: where it is, with which token it is asked, and what its refusals mean."""

from __future__ import annotations

import logging
import os
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rlhf_ray.errors import RlhfError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = Path("~/.ray/auth_token")  # where Ray itself keeps one
CONNECT_TIMEOUT_S = 10.0


class SubmissionError(RlhfError):
    """The cluster's job interface cannot be used: the message holds what was tried and what to do."""


@dataclass(frozen=True)
class Head:
    """Where jobs are sent to, and who said so."""

    address: str  # http://host:port of the cluster's dashboard
    source: str


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
    use_the_token_that_is_there()
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # else it tells of every closed socket
    with explained(head), hidden_variables(ADDRESS_VARIABLES):  # Ray would let them win over an explicit address
        return JobSubmissionClient(head.address)


def use_the_token_that_is_there() -> None:
    """Ask with a token wherever one is at hand and RAY_AUTH_MODE says nothing else: Ray reads it with its import."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    if any(os.environ.get(name) for name in TOKEN_VARIABLES) or TOKEN_FILE.expanduser().is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


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
            "  - with token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH must hold the head's token\n"
            "  - on Kubernetes it is in the cluster's secret: see docs/operations.md"
        ) from error
    except ConnectionError as error:
        raise no_head(head, error) from error
    except (RuntimeError, ValueError) as error:
        raise SubmissionError(f"the head at {head.address} refuses: {error}") from error


@contextmanager
def hidden_variables(names: Sequence[str]) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
