"""The jobs of a cluster: list them, read their logs, stop them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.head import Head, SubmissionError, connect, explained, find_head
from launch.submit import POLL_INTERVAL_S, JobOutcome, follow_job, outcome

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOP_TIMEOUT_S = 60.0  # Ray gives a job some seconds for SIGTERM before it kills it


@dataclass(frozen=True)
class JobRow:
    """One line of the list."""

    submission_id: str
    status: str
    started: float | None  # seconds since the epoch
    seconds: float | None
    entry_point: str


def list_jobs(address: str | None, *, now: Callable[[], float] = time.time) -> list[JobRow]:
    """The submitted jobs, the newest last. Drivers that joined the cluster without being submitted are left out."""
    head, client = _open(address)
    with explained(head):
        found = client.list_jobs()
    rows = [row_of(details, now()) for details in found if details.submission_id]
    return sorted(rows, key=lambda row: (row.started is None, row.started or 0.0))


def row_of(details: Any, now: float) -> JobRow:
    started = details.start_time / 1000 if details.start_time else None
    ended = details.end_time / 1000 if details.end_time else now
    seconds = None if started is None else max(0.0, ended - started)
    return JobRow(str(details.submission_id), str(details.status.value), started, seconds, str(details.entrypoint))


def table(rows: Sequence[JobRow]) -> list[str]:
    """Lines for a terminal."""
    lines = [f"{'JOB':<28} {'STATUS':<10} {'STARTED (UTC)':<20} {'TIME':>9}  COMMAND"]
    for row in rows:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row.started)) if row.started else "-"
        took = "-" if row.seconds is None else f"{row.seconds:.0f} s"
        lines.append(f"{row.submission_id:<28} {row.status:<10} {began:<20} {took:>9}  {row.entry_point}")
    return lines


def write_logs(
    submission_id: str, *, address: str | None, follow: bool, write: Callable[[str], object] = sys.stdout.write
) -> JobOutcome | None:
    """Write a job's log so far; followed, until it ends, and then return how it ended."""
    head, client = _open(address)
    with known_job(head, submission_id):
        if follow:
            client.get_job_status(submission_id)
            return asyncio.run(follow_job(client, submission_id, write=write))
        write(client.get_job_logs(submission_id))
    return None


def stop(submission_id: str, *, address: str | None, timeout_s: float = STOP_TIMEOUT_S) -> JobOutcome:
    """End a job and wait until it has: a run saves its state when it is told to end."""
    head, client = _open(address)
    with known_job(head, submission_id):
        client.stop_job(submission_id)
        deadline = time.monotonic() + timeout_s
        while not client.get_job_status(submission_id).is_terminal():
            if time.monotonic() > deadline:
                raise SubmissionError(
                    f"job {submission_id} has not ended within {timeout_s:g} s; see `rlhf-ray jobs list`"
                )
            time.sleep(POLL_INTERVAL_S)
        return outcome(client, submission_id)


@contextmanager
def known_job(head: Head, submission_id: str) -> Iterator[None]:
    """Like `explained`, and a job that the cluster does not know is told from a head that refuses."""
    with explained(head):
        try:
            yield
        except RuntimeError as error:
            if "404" not in str(error) and "does not exist" not in str(error):
                raise
            raise SubmissionError(
                f"{head.address} ({head.source}) knows no job {submission_id}; `rlhf-ray jobs list` shows its jobs"
            ) from error


def _open(address: str | None) -> tuple[Head, JobSubmissionClient]:
    head = find_head(address)
    return head, connect(head)
