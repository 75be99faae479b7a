"""The command that serves the page on runs, and what it refuses at the door."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import Result
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.config.web import WebConfig
from tests.viewing.made_up import made_up_run


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["view", *map(str, arguments)])


def error_of(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr.strip().removeprefix("error: ")


def test_runs_are_served_on_this_machine_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[ASGIApp, WebConfig]] = []

    def serve(app: ASGIApp, where: WebConfig, *, say: object) -> None:
        served.append((app, where))
        assert callable(say)
        say("http://127.0.0.1:8100")

    monkeypatch.setattr("rlhf_ray.viewing.server.serve_app", serve)
    roots = [made_up_run(tmp_path / name).root for name in ("a", "b")]
    done = run(*roots, "--cache", tmp_path / "cache")
    assert done.stdout == "2 runs on http://127.0.0.1:8100\n"
    ((page, where),) = served
    assert (where.host, where.port, where.open_to_network) == ("127.0.0.1", 8100, False)
    assert TestClient(page, base_url="http://127.0.0.1:8100").get("/curves").status_code == 200
    assert not (roots[0] / ".view").exists()


def test_what_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    root = made_up_run(tmp_path / "run").root
    assert "RUN" in error_of(run(tmp_path / "nowhere"))
    assert "view.host ('0.0.0.0') can be reached from other machines" in error_of(run(root, "--host", "0.0.0.0"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot be served on" in error_of(run(root, "--port", port))
