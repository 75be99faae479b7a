"""The command line: ``rlhf-ray COMMAND CONFIG [key=value ...]``."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError, RlhfError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reinforcement learning from human feedback on Ray, vLLM and DeepSpeed.",
)
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, for example configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Settings to change.", show_default=False)
]
Print = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")]


@app.command()
def pipeline(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Run everything: model, SFT, comparisons, reward model, PPO, evaluation, report. Continues where it stopped."""
    _run(config, overrides, print_config, until="evaluation", report=True)


@app.command()
def sft(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Train on demonstrations (after the stages before it, where they are not done)."""
    _run(config, overrides, print_config, until="sft")


@app.command()
def reward(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Collect comparisons and train the reward model (after the stages before it, where they are not done)."""
    _run(config, overrides, print_config, until="reward_model")


@app.command()
def ppo(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Train the policy with PPO (after the stages before it, where they are not done)."""
    _run(config, overrides, print_config, until="ppo")


@app.command()
def dpo(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Train the policy on the comparisons with DPO or a relative (`methods` must name dpo)."""
    _run(config, overrides, print_config, until="dpo")


@app.command()
def raft(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Fine-tune the policy on its own best responses by the rewards (`methods` must name raft)."""
    _run(config, overrides, print_config, until="raft")


@app.command()
def evaluate(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Compare the SFT model with what each method made of it on held-out prompts (after the stages before it)."""
    _run(config, overrides, print_config, until="evaluation")


@app.command()
def report(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Write the report of a finished run again; starts nothing."""
    settings = _settings(config, overrides, print_config)

    def write() -> None:
        from launch.jobs import report_again

        report_again(settings, command=_command())

    _guard(write)


@app.command()
def generate(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="'sft', a method of the run, or a directory with a checkpoint.")] = "ppo",
    output: Annotated[Path | None, typer.Option(help="Where to write; default OUTPUT_DIR/generations.jsonl.")] = None,
    print_config: Print = False,
) -> None:
    """Sample responses to the task's held-out prompts from a model of the run, as jsonl."""
    settings = _settings(config, overrides, print_config)

    def run() -> None:
        from launch.jobs import generate_responses

        asyncio.run(generate_responses(settings, model=model, output=output, command=_command()))

    _guard(run)


@app.command()
def replay(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR",
            help="A run's output_dir, or OUTPUT_DIR/ppo/quarantine/STEP.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    print_config: Print = False,
) -> None:
    """Train a run's saved rollouts again (ppo.save_rollouts=true) and compare every number; status 1 if any differs.

    Of a quarantined step, do again what failed and tell which numbers are bad; status 1 if nothing fails.
    """
    config = _guard(lambda: _config_of(directory))
    settings, recorded = _settings(config, overrides, print_config), _settings(config, None, False)

    def run() -> None:
        from launch.jobs import examine_quarantined, replay_recorded

        if (directory / "quarantine.json").is_file():
            done = examine_quarantined(settings, recorded=recorded, step=directory, command=_command())
        else:
            done = replay_recorded(settings, recorded=recorded, root=directory, command=_command())
        if not asyncio.run(done):
            raise typer.Exit(1)

    _guard(run)


# ------------------------------------------------------------------------------------------------------------- feedback
feedback = typer.Typer(no_args_is_help=True, help="People's and judges' comparisons: the preference store.")
app.add_typer(feedback, name="feedback")
Store = Annotated[str, typer.Argument(metavar="STORE", help="An SQLite file, or a database's url.")]


@feedback.command("import")
def feedback_import(
    store: Store, source: Annotated[str, typer.Argument(metavar="FILE", help="A file, or hub:owner/name.")]
) -> None:
    """Add the judgements of a file to a store, which is made where there is none."""

    def run() -> None:
        from rlhf_ray.data.sources import check_source
        from rlhf_ray.feedback.exchange import import_file
        from rlhf_ray.feedback.store import open_store

        check_source(source, field="FILE")
        with open_store(store, create=True) as opened:
            done = import_file(opened, source)
        left_out = "".join(f", {count} {reason.replace('_', ' ')}" for reason, count in done.dropped.items())
        print(f"{done.items} items, {done.judgements} new judgements{left_out}: {store}")

    _guard(run)


@feedback.command("export")
def feedback_export(
    store: Store,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write: .jsonl, .jsonl.gz or .parquet.")],
    shape: Annotated[
        str, typer.Option(help="store, rankings, pairs, conversational, kto, hh_rlhf, ultrafeedback.")
    ] = "store",
) -> None:
    """Write a store's content in one of the field's shapes; `store` loses nothing."""

    def run() -> None:
        from rlhf_ray.feedback.exchange import SHAPES, export
        from rlhf_ray.feedback.store import open_store

        if shape not in SHAPES:
            raise ConfigError("--shape", shape, "is no shape", f"choose one of {', '.join(SHAPES)}")
        with open_store(store) as opened:
            print(f"{export(opened, file, shape)} records: {file}")

    _guard(run)


@feedback.command("stats")
def feedback_stats(store: Store) -> None:
    """Print how many judgements a store has, by annotator, and whether annotators agree."""

    def run() -> None:
        from rlhf_ray.feedback.report import report
        from rlhf_ray.feedback.store import open_store

        with open_store(store) as opened:
            for line in report(opened):
                print(line)

    _guard(run)


@app.command()
def submit(
    config: Config,
    overrides: Overrides = None,
    address: Annotated[str | None, typer.Option(help="The cluster's job server, http://HOST:8265.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job's log.")] = False,
    env: Annotated[list[str] | None, typer.Option(help="Environment variables to pass on, by name.")] = None,
    print_config: Print = False,
) -> None:
    """Run the pipeline as a job on a Ray cluster; the exit status is the job's."""
    _settings(config, overrides, print_config)

    def run() -> None:
        from launch import submit as jobs

        outcome = jobs.submit(config, overrides or [], address=address, follow=not detach, pass_env=env or [])
        raise typer.Exit(outcome.exit_code)

    _guard(run)


def main() -> None:
    """Entry point of the installed command."""
    app()


# ------------------------------------------------------------------------------------------------------------- helpers
def _run(config: Path, overrides: list[str] | None, print_config: bool, *, until: str, report: bool = False) -> None:
    settings = _settings(config, overrides, print_config)

    def run() -> None:
        from launch.jobs import run_until

        asyncio.run(run_until(settings, until=until, report=report, command=_command()))

    _guard(run)


def _settings(config: Path, overrides: list[str] | None, print_config: bool) -> RunConfig:
    settings: RunConfig = _guard(lambda: load_config(config, overrides or []))
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        raise typer.Exit(0)
    return settings


def _config_of(directory: Path) -> Path:
    """The settings that a run left in its directory."""
    config = directory / "config.yaml"
    if not config.is_file():
        raise ConfigError(
            "RUN_DIR", str(directory), "holds no config.yaml", "give a run's output_dir or a quarantined step"
        )
    return config


def _guard(action: Callable[[], Any]) -> Any:
    """Run ``action``; an error that we raised on purpose becomes one readable line and exit status 2."""
    try:
        return action()
    except RlhfError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(2) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.secho("stopped; the same command goes on where this one was", err=True, fg=typer.colors.YELLOW)
        raise typer.Exit(130) from None


def _command() -> str:
    return shlex.join(["rlhf-ray", *sys.argv[1:]])


if __name__ == "__main__":
    main()
