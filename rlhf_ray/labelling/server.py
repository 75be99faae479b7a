"""Serve the labelling page until the process is told to stop."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_ray.labelling.desk import Desk
from rlhf_ray.labelling.web import build_app
from rlhf_ray.web.server import serve_app


def serve(desk: Desk, *, say: Callable[[str], None]) -> None:
    """Hand the page's address to ``say`` and answer. Raises ConfigError for a taken port."""
    serve_app(build_app(desk), desk.settings.serving, say=say)
