"""``rlhf-ray view``: a local page on runs, live while they run and still there years later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.command import guard

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs' output_dir; the others are compared with.")]


def view(
    runs: Runs,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on; 0 takes a free one.")] = 8100,
    open_to_network: Annotated[
        bool, typer.Option("--open-to-network", help="Allow a --host that other machines reach, over plain http.")
    ] = False,
    public_url: Annotated[str, typer.Option(help="How people reach the page, e.g. https://view.example.org.")] = "",
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the index of the rollouts goes; default .view below each run."),
    ] = None,
    snapshot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the pages into one HTML file instead, and stop.")
    ] = None,
) -> None:
    """Serve a page on runs: curves, rollouts, answers, preferences, timeline, alarms, lineage, configuration."""

    def run() -> None:
        from rlhf_ray.config.web import WebConfig
        from rlhf_ray.viewing.server import serve

        if snapshot is not None:
            from rlhf_ray.viewing.snapshot import write_snapshot

            write_snapshot(runs, snapshot)
            print(f"{snapshot}: {runs[0]} as it is now")
            return
        where = WebConfig(host, port, open_to_network, public_url)
        serve(runs, where, cache=cache, say=lambda address: print(f"{len(runs)} runs on {address}", flush=True))

    guard(run)
