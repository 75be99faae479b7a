"""Serve the pages on runs until the process is told to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_ray.config.web import WebConfig
from rlhf_ray.viewing.library import Library
from rlhf_ray.viewing.run import open_runs
from rlhf_ray.viewing.web import build_app
from rlhf_ray.web.server import serve_app


def serve(roots: Sequence[Path], where: WebConfig, *, cache: Path | None, say: Callable[[str], None]) -> None:
    """Hand the address to ``say`` and answer, while threads keep up with the runs' rollouts.

    Raises ConfigError for a directory that is no run's, and for a taken port.
    """
    runs = open_runs(list(roots))
    libraries = [Library(run, cache) for run in runs]
    for library in libraries:
        library.start()
    try:
        serve_app(build_app(runs, libraries, where), where, say=say)
    finally:
        for library in libraries:
            library.stop()
