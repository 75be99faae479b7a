"""The command that serves the labelling page: links that are printed once, and what it refuses at the door."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.config.labelling import LabellingConfig
from rlhf_ray.labelling.desk import Desk, open_desk
from rlhf_ray.labelling.guidelines import guidelines_of

ITEMS = '{"prompt": "a", "responses": ["b", "c"]}\n{"prompt": "d", "responses": ["e", "f"], "gold_ranks": [0, 1]}\n'


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr.strip().removeprefix("error: ")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "items.jsonl").write_text(ITEMS)
    done = run("feedback", "add", tmp_path / "labels.db", tmp_path / "items.jsonl")
    assert done.stdout == f"2 items, 2 of them new, 1 with a known answer: {tmp_path}/labels.db\n"
    return tmp_path / "labels.db"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Desk]:
    """Stand in for the server: remember the desk, announce an address, return at once."""
    desks: list[Desk] = []

    def serve(desk: Desk, *, say: Callable[[str], None]) -> None:
        desks.append(desk)
        say("http://127.0.0.1:8100")

    monkeypatch.setattr("launch.label.serve", serve)
    return desks


def links(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S+): http://127\.0\.0\.1:8100/enter#(\S+)$", output, re.MULTILINE))


def name_of(store: Path, token: str) -> str | None:
    with open_desk(str(store), LabellingConfig(), guidelines_of("x"), only=frozenset()) as desk:
        person = desk.person(token)
        return None if person is None else person.name


@pytest.mark.usefixtures("served")
def test_links_are_printed_once_and_hold_when_the_server_starts_again(store: Path) -> None:
    first = run("label", store, "--annotator", "ann")
    assert first.stdout.splitlines()[0] == "2 items to label on http://127.0.0.1:8100"
    tokens = links(first.stdout)
    assert tokens.keys() == {"ann", "manager"}
    again = run("label", store, "--annotator", "bob")  # ann is known by now
    assert links(again.stdout).keys() == {"bob"}
    assert "ann: keeps the link that was printed before (lost? --new-link ann)" in again.stdout
    assert name_of(store, tokens["ann"]) == "ann"
    fresh = links(run("label", store, "--new-link", "ann").stdout)
    assert (name_of(store, tokens["ann"]), name_of(store, fresh["ann"])) == (None, "ann")
    assert "('eve') has no link in this store" in error_of(run("label", store, "--new-link", "eve"))


def test_options_become_settings(store: Path, served: list[Desk]) -> None:
    options = ["--axis", "kind", "--scale", "7", "--overlap-every", "3", "--overlap", "4", "--gold-every", "0"]
    assert run("label", store, "--annotator", "ann", *options, "--lease-minutes", "5").exit_code == 0
    settings = served[0].settings
    assert (settings.axes, settings.scale) == (("kind",), 7)
    rules = settings.assignment
    assert (rules.overlap_every, rules.overlap, rules.gold_every, rules.lease_minutes) == (3, 4, 0, 5.0)
    assert run("label", store, "--no-axes").exit_code == 0
    assert served[1].settings.axes == ()


def test_guidelines_and_a_choice_of_items_are_read_from_files(store: Path, served: list[Desk], tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("# Be *kind*")
    (tmp_path / "some.txt").write_text("nothing-of-this-name\n")
    done = run("label", store, "--annotator", "ann", "--guidelines", tmp_path / "guide.md")
    assert done.exit_code == 0
    assert "<em>kind</em>" in served[0].guidelines.html
    refused = error_of(run("label", store, "--annotator", "ann", "--items", tmp_path / "some.txt"))
    assert "holds no item with 2 to 9 responses" in refused
    assert "--items" in error_of(run("label", store, "--annotator", "ann", "--items", tmp_path / "none.txt"))
    assert "--guidelines" in error_of(run("label", store, "--annotator", "ann", "--guidelines", tmp_path / "none.md"))


def test_what_cannot_be_served_is_told_in_one_line(store: Path, tmp_path: Path) -> None:
    assert "STORE" in error_of(run("label", tmp_path / "none.db", "--annotator", "ann"))
    assert "--annotator ('') names nobody" in error_of(run("label", store))
    assert "reads every token" in error_of(run("label", store, "--annotator", "ann", "--host", "0.0.0.0"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot be served on" in error_of(run("label", store, "--annotator", "ann", "--port", port))
