"""Serve an application on one address until the process is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from rlhf_ray.config.web import WebConfig
from rlhf_ray.errors import ConfigError


def serve_app(app: ASGIApp, where: WebConfig, *, say: Callable[[str], None]) -> None:
    """Take the port, hand the address to ``say`` once it is taken, and answer. Raises ConfigError for a taken port.

    There is no access log: it would say who asked for what, and when.
    """
    with _listen(where) as listening:
        say(base_url(where, listening.getsockname()[1]))
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            server_header=False,
            # Only a proxy, which --public-url stands for, may say for whom it asks.
            proxy_headers=bool(where.public_url),
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listen(where: WebConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    try:
        return socket.create_server((where.host, where.port), family=family)
    except OSError as error:
        raise ConfigError(
            "--port", f"{where.host}:{where.port}", f"cannot be served on ({error.strerror})", "choose another"
        ) from error


def base_url(where: WebConfig, port: int) -> str:
    """By which address people reach the page."""
    host = f"[{where.host}]" if ":" in where.host else where.host
    return where.public_url.rstrip("/") or f"http://{host}:{port}"
