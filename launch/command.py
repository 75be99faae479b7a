"""What every command has in common: its arguments, its settings, and how its errors are told."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError, RlhfError
from rlhf_ray.stopping import EXIT_STATUS, StoppedError

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, for example configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Settings to change.", show_default=False)
]
Print = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")]


def settings_of(config: Path, overrides: list[str] | None, print_config: bool) -> RunConfig:
    """Read and check a configuration; print it and stop where that is asked for."""
    settings: RunConfig = guard(lambda: load_config(config, overrides or []))
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        raise typer.Exit(0)
    return settings


def guard(action: Callable[[], Any]) -> Any:
    """Run ``action``; an error that we raised on purpose becomes one readable line and exit status 2.

    A run that was told to stop, and has, ends with status 75: the same command goes on.
    """
    try:
        return action()
    except StoppedError as stopped:
        typer.secho(f"stopped: {stopped}; the same command goes on from there", err=True, fg=typer.colors.YELLOW)
        raise typer.Exit(EXIT_STATUS) from None
    except RlhfError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(2) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.secho("stopped; the same command goes on where this one was", err=True, fg=typer.colors.YELLOW)
        raise typer.Exit(130) from None


def command_line() -> str:
    """The command as it was given."""
    return shlex.join(["rlhf-ray", *sys.argv[1:]])


def be_quiet() -> None:
    """Keep vendors' banners out of a run's output; their errors still come through."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # of this process; a trainer's own says what it has
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def endpoint_key(key_env: str) -> str:
    """The key that ``key_env`` names; empty where it names none. Raises ConfigError where it is not set."""
    key = os.environ.get(key_env, "") if key_env else ""
    if key_env and not key:
        raise ConfigError("--key-env", key_env, "must name a variable that is set", "export it first")
    return key
