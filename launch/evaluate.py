"""The commands that look at models: ``rlhf-ray evaluate``, ``rlhf-ray drift`` and ``rlhf-ray chat``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from launch.command import Config, Overrides, Print, command_line, guard, settings_of

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Baseline = Annotated[str, typer.Option(metavar="NAME", help="Whom the others are compared with; default the first.")]
KeyEnv = Annotated[str, typer.Option(help="The environment variable with the key of endpoints.")]


def evaluate(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WHAT", help="A stage of the run, a checkpoint, or http://host/v1#model; repeatable."
        ),
    ] = None,
    suite: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="What they are asked, a YAML file; repeatable.")
    ] = None,
    baseline: Baseline = "",
    output: Annotated[Path | None, typer.Option(help="Where results go; default OUTPUT_DIR/suites.")] = None,
    key_env: KeyEnv = "",
    print_config: Print = False,
) -> None:
    """Compare the SFT model with what each method made of it on held-out prompts (after the stages before it).

    With --model or --suite: compare any checkpoints on any suites, in one table. What was answered before is not asked
    again.
    """
    settings = settings_of(config, overrides, print_config)

    def run() -> None:
        from launch.evaluate_jobs import Asked, evaluate_suites
        from launch.jobs import run_until

        if not model and not suite:
            asyncio.run(run_until(settings, until="evaluation", report=False, command=command_line()))
            return
        asked = Asked(tuple(model or ()), tuple(suite or ()), baseline, output, key_env)
        asyncio.run(evaluate_suites(settings, asked, command=command_line()))

    guard(run)


def drift(
    log: Annotated[
        str, typer.Argument(metavar="LOG", help="Answered conversations, one a line: .jsonl, .json, .parquet.")
    ],
    baseline_days: Annotated[
        int, typer.Option(help="The first so many days are what the others are compared with.")
    ] = 7,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the days as jsonl too.")] = None,
) -> None:
    """Show a served model's refusals, length and satisfaction by day, and alarms; status 1 where there is one."""

    def run() -> None:
        from launch.drift import show_drift

        if show_drift(log, baseline_days=baseline_days, output=output):
            raise typer.Exit(1)

    guard(run)


def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, RUN/STAGE, a checkpoint, or http://host/v1#model.")
    ],
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="Another, to compare: also a stage's name, of the first one's run."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that reach this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from so many likeliest tokens; 0: from all.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the first answer; each turn takes the next.")] = 0,
    system: Annotated[str, typer.Option(help="What the models are told first.")] = "",
    chat_template: Annotated[
        str, typer.Option(help="plain, chatml, compact or a Jinja file; default the checkpoint's own, then its run's.")
    ] = "",
    device: Annotated[Device, typer.Option(help="auto, cpu or cuda.")] = "auto",
    key_env: KeyEnv = "",
) -> None:
    """Talk to a model on the terminal, or to two at once, side by side. Starts no cluster."""

    def run() -> None:
        from launch.chat import talk
        from rlhf_ray.chat.speakers import ChatSampling

        talk(
            [model, *([other] if other else [])],
            sampling=ChatSampling(temperature, top_p, top_k, max_tokens, seed),
            system=system,
            chat_template=chat_template,
            device=device,
            key_env=key_env,
        )

    guard(run)
