"""Commands that speak to a Ray cluster's job interface: ``submit`` and ``jobs list|logs|stop``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.command import Config, Overrides, Print, guard, settings_of

Address = Annotated[str | None, typer.Option(help="The cluster's job server, http://HOST:8265.", show_default=False)]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="As `submit` and `jobs list` show it.")]

jobs = typer.Typer(no_args_is_help=True, help="The jobs of a Ray cluster.")


def submit(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job's log.")] = False,
    env: Annotated[list[str] | None, typer.Option(help="Variables to pass on: NAME or NAME=VALUE.")] = None,
    working_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What is shipped; default: this checkout.", show_default=False)
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ray's runtime environment, YAML: pip, excludes, ...")
    ] = None,
    num_cpus: Annotated[float, typer.Option(help="CPUs that the driver reserves.")] = 0.0,
    num_gpus: Annotated[float, typer.Option(help="GPUs that the driver reserves.")] = 0.0,
    memory_gb: Annotated[float, typer.Option(help="GiB of memory that the driver reserves.")] = 0.0,
    resource: Annotated[list[str] | None, typer.Option(metavar="NAME=AMOUNT", help="Custom resources.")] = None,
    job_id: Annotated[str | None, typer.Option(help="The job's name; default: Ray makes one.")] = None,
    print_config: Print = False,
) -> None:
    """Run the pipeline as a job on a Ray cluster; the exit status is the job's."""
    settings_of(config, overrides, print_config)

    def run() -> None:
        from launch import submit as submission

        job = submission.Job(
            working_dir=working_dir or submission.CHECKOUT,
            runtime_env={} if runtime_env is None else submission.read_runtime_env(runtime_env),
            environment=env or [],
            resources=submission.JobResources(
                num_cpus, num_gpus, memory_gb, submission.custom_resources(resource or [])
            ),
            submission_id=job_id,
        )
        outcome = submission.submit(config, overrides or [], job=job, address=address, follow=not detach)
        raise typer.Exit(outcome.exit_code)

    guard(run)


@jobs.command("list")
def list_jobs(address: Address = None) -> None:
    """List the submitted jobs, the newest last."""

    def run() -> None:
        from launch import ray_jobs

        for line in ray_jobs.table(ray_jobs.list_jobs(address)):
            print(line)

    guard(run)


@jobs.command("logs")
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends; the exit status is its own.")] = False,
) -> None:
    """Write a job's log."""

    def run() -> None:
        from launch import ray_jobs

        ended = ray_jobs.write_logs(job, address=address, follow=follow)
        raise typer.Exit(ended.exit_code if ended else 0)

    guard(run)


@jobs.command("stop")
def stop(job: JobId, address: Address = None) -> None:
    """End a job and wait until it has ended; the same `submit` goes on where it was."""

    def run() -> None:
        from launch import ray_jobs

        print(f"job {job}: {ray_jobs.stop(job, address=address).status.lower()}")

    guard(run)
