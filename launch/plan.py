"""``rlhf-ray plan``: memory, step time and split, before anything is rented or started."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from launch.command import Config, Overrides, Print, command_line, guard, settings_of
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.calibration import Calibration, predict
from rlhf_ray.planning.hardware import accelerator
from rlhf_ray.planning.observed import compared, observed_seconds, predicted_seconds
from rlhf_ray.planning.plan import Plan, make_plan
from rlhf_ray.planning.splits import Candidate
from rlhf_ray.planning.step_time import PhaseSeconds, Split

GB = 1e9


def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs in all.")] = 8,
    gpu: Annotated[str, typer.Option(help="a100-80, h100, h200, b200 or l40s.")] = "h100",
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that hold them.")] = 1,
    prompt_tokens: Annotated[int | None, typer.Option(help="Mean length of prompts; default half their room.")] = None,
    response_tokens: Annotated[int | None, typer.Option(help="Mean length of responses; default 0.6 of most.")] = None,
    observed: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run's output_dir: its measured seconds beside the plan's.")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Measure this machine with small real steps (CPU).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    print_config: Print = False,
) -> None:
    """Say what PPO will need on each GPU, how long a step takes, and how to split the GPUs; starts nothing."""
    settings = settings_of(config, overrides, print_config)

    def run() -> None:
        seen = observed_seconds(observed) if observed is not None else None
        length = response_tokens or (round(seen["response_tokens"]) if seen else None)
        if probe:
            calibration = asyncio.run(_calibration(settings))
            _show_calibrated(settings, calibration, length, seen, as_json)
            return
        if gpus % nodes:
            raise ConfigError("--nodes", nodes, f"must divide --gpus ({gpus})", "give every node as many")
        made = make_plan(
            settings, devices=gpus, nodes=nodes, device=accelerator(gpu), prompt=prompt_tokens, response=length
        )
        _show(made, seen, as_json)

    guard(run)


async def _calibration(settings: RunConfig) -> Calibration:
    from launch.probe import calibrate

    return await calibrate(settings, command=command_line())


# ------------------------------------------------------------------------------------------------------------- showing
def _show(made: Plan, seen: dict[str, float] | None, as_json: bool) -> None:
    beside = compared(predicted_seconds(made.configured.seconds), seen) if seen else None
    if as_json:
        _print_json({**made.as_dict(), **({"observed": beside} if beside else {})})
        return
    console, work = Console(), made.work
    console.print(
        f"{work.shape.parameters / 1e9:.3g}B parameters, {work.rollouts} rollouts a step of about {work.prompt} + "
        f"{work.response} tokens, on {made.devices} x {made.device.name} ({made.device.memory / GB:.0f} GB)"
    )
    console.print(memory_table(made.best))
    console.print(split_table(made))
    for line in _conclusions(made):
        console.print(line, highlight=False)
    if beside:
        console.print(observed_table(beside))


def _conclusions(made: Plan) -> list[str]:
    seconds = made.best.seconds
    share = getattr(seconds, seconds.bottleneck) / seconds.in_turn
    sync = f"weight sync: {seconds.sync:.2g} s, the wire alone {made.wire_seconds:.2g} s"
    bottleneck = f"bottleneck: {seconds.bottleneck.replace('_', ' ')}, {share:.0%} of a step; schedule: {made.schedule}"
    return [sync, bottleneck, *(f"change: {line}" for line in made.advice)]


SPLIT_ROWS: dict[str, Callable[[Split], str]] = {
    "trainer ranks": lambda split: str(split.ranks) + (" (all roles share them)" if split.shared else ""),
    "engines": lambda split: str(split.engines) + (f" of {split.tensor_parallel}" if split.tensor_parallel > 1 else ""),
    "reference, reward servers": lambda split: f"{split.reference}, {split.reward}",
}


def memory_table(candidate: Candidate) -> Table:
    """GB on one device of each role; a role that does not fit is marked."""
    names = list(dict.fromkeys(name for memory in candidate.memory for name in memory.parts))
    table = Table(title="Memory on one device, GB")
    table.add_column("")
    for memory in candidate.memory:
        mark = " (too large)" if memory.role in candidate.short else ""
        table.add_column(memory.role + mark, justify="right")
    for name in names:
        table.add_row(name, *(f"{m.parts[name] / GB:.1f}" if name in m.parts else "" for m in candidate.memory))
    table.add_row("all", *(f"{memory.total / GB:.1f}" for memory in candidate.memory))
    if any(memory.host for memory in candidate.memory):
        table.add_row("on its host", *(f"{m.host / GB:.1f}" if m.host else "" for m in candidate.memory))
    return table


def split_table(made: Plan) -> Table:
    """The configured split beside the recommended one: devices, then seconds by phase."""
    table = Table(title="One step, seconds")
    table.add_column("")
    sides = (made.configured, made.best)
    for title, candidate in zip(("configured", "recommended"), sides, strict=True):
        table.add_column(title + ("" if candidate.fits else " (does not fit)"), justify="right")
    for name, words in SPLIT_ROWS.items():
        table.add_row(name, *(words(candidate.split) for candidate in sides))
    for name in ("generate", "score", "old_logprobs", "update", "sync", "in_turn", "overlapped"):
        table.add_row(name.replace("_", " "), *(f"{getattr(c.seconds, name):.3g}" for c in sides))
    return table


def observed_table(beside: dict[str, dict[str, float]]) -> Table:
    table = Table(title="Predicted and observed, seconds a step")
    for title in ("phase", "predicted", "observed", "ratio"):
        table.add_column(title, justify="left" if title == "phase" else "right")
    for name, row in beside.items():
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
        table.add_row(name, f"{row['predicted']:.3g}", f"{row['observed']:.3g}", ratio)
    return table


def _show_calibrated(
    settings: RunConfig, calibration: Calibration, length: int | None, seen: dict[str, float] | None, as_json: bool
) -> None:
    seconds = predicted_step(settings, calibration, response=length)
    beside = compared(predicted_seconds(seconds), seen) if seen else None
    if as_json:
        _print_json({"calibration": calibration.as_dict(), "seconds": predicted_seconds(seconds), "observed": beside})
        return
    console = Console()
    rates = Table(title=f"Measured on this machine ({len(calibration.points)} small steps)")
    for title in ("engine, tokens/s", "trainer, tokens/s", "reference, tokens/s", "reward model, tokens/s"):
        rates.add_column(title, justify="right")
    rates.add_row(
        f"{calibration.engine_tokens_per_second:.0f}",
        f"{calibration.trainer_tokens_per_second:.0f}",
        f"{calibration.reference_tokens_per_second:.0f}",
        f"{calibration.reward_tokens_per_second:.0f}",
    )
    console.print(rates)
    predicted = predicted_seconds(seconds)
    console.print("predicted step: " + ", ".join(f"{name} {value:.3g} s" for name, value in predicted.items()))
    if beside:
        console.print(observed_table(beside))


def predicted_step(settings: RunConfig, calibration: Calibration, *, response: float | None = None) -> PhaseSeconds:
    """A step of the configuration's size, with lengths as the probe saw them unless ``response`` is given."""
    return predict(
        calibration,
        rollouts=settings.ppo.rollouts_per_step,
        prompt=calibration.mean_prompt,
        response=response or calibration.mean_response,
        longest=calibration.longest,
    )


def _print_json(content: dict[str, Any]) -> None:
    json.dump(content, sys.stdout, indent=1)
    sys.stdout.write("\n")
