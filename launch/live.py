"""Commands for a run that is under way: what it does, and how large its fleet is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.command import guard
from rlhf_ray.errors import ConfigError
from rlhf_ray.supervision.control import Status, ask_for, read_status, wait_until_followed
from rlhf_ray.viewing.run import Run as Logs
from rlhf_ray.viewing.terminal import seen

REFRESH_S = 1.0
FOLLOWED_WITHIN_S = 30.0
Run = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's output_dir.", show_default=False)]


def scale(
    run: Run,
    generators: Annotated[int | None, typer.Option(help="How many generators there shall be.", min=1)] = None,
    references: Annotated[int | None, typer.Option(help="How many reference servers.", min=1)] = None,
    reward_models: Annotated[int | None, typer.Option(help="How many servers of each reward model.", min=1)] = None,
) -> None:
    """Grow or shrink the fleet of a run that is under way, without stopping it."""

    def ask() -> None:
        asked = {"generator": generators, "reference": references, "reward_model": reward_models}
        wanted = {role: count for role, count in asked.items() if count is not None}
        if not wanted:
            raise ConfigError("--generators", None, "must be given", "say how many there shall be, of any role")
        request = ask_for(run, wanted)
        wait_until_followed(run, request, timeout_s=FOLLOWED_WITHIN_S)
        sizes = ", ".join(f"{count} x {role}" for role, count in wanted.items())
        print(f"The run goes to {sizes}; follow it with: rlhf-ray status {run} --watch")

    guard(ask)


def status(
    run: Run, watch: Annotated[bool, typer.Option("--watch", help="Show it again every second.")] = False
) -> None:
    """Show what a run does: step, time left, curves, phases, newest alarm, actors; status 1 where it is not alive."""

    def show() -> None:
        found, logs = read_status(run), Logs(run, 0, "")
        if watch and found.is_alive:
            with Live(rendered(run, found, logs), auto_refresh=False) as live:
                while found.is_alive:
                    time.sleep(REFRESH_S)
                    found = read_status(run)
                    live.update(rendered(run, found, logs), refresh=True)
        else:
            Console().print(rendered(run, found, logs))
        if not found.is_alive and found.content.get("ended") != "finished":
            raise typer.Exit(1)

    guard(show)


def resume_paused(run: Run) -> None:
    """Let a run go on that an alarm has paused, once you have looked at what it says."""

    def answer() -> None:
        from rlhf_ray.pipeline.watching import resume_paused as lay_answer

        print(f"{run} was paused {lay_answer(run)}; it goes on")

    guard(answer)


def rendered(run: Path, found: Status, logs: Logs) -> RenderableType:
    """For people. The last known state of a run that is not alive is shown with its age."""
    said = found.content
    if found.is_alive:
        head = Text(f"{run}: alive, process {said['pid']} on {said['host']}", style="bold green")
    elif said.get("ended"):
        head = Text(f"{run}: {said['ended']}, {found.age_s:.0f} s ago", style="bold")
    else:
        head = Text(f"{run}: not alive; what it said {found.age_s:.0f} s ago:", style="bold red")
    lines = [Text(f"phase {said.get('phase', '?')}, step {said.get('step', 0)}")]
    if metrics := said.get("metrics"):
        lines.append(Text(", ".join(f"{name} {value:.4g}" for name, value in metrics.items())))
    fleet = (part for group in said.get("fleet", ()) for part in _group(group))
    return Group(head, *lines, *seen(logs), *fleet)


def _group(group: Mapping[str, Any]) -> list[RenderableType]:
    queue = Text(
        f"{group['role']}: {group['wanted']} wanted; shards: {group['running_shards']} running, "
        f"{group['waiting_shards']} waiting, {group['requeued_shards']} requeued; {group['restarts']} restarts"
    )
    table = Table("member", "state", "for s", "node", "version", "in hand")
    for member in group["members"]:
        cells = (member.get(name) for name in ("name", "state", "for_s", "node", "version", "load"))
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return [queue, table]
