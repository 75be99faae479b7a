"""The pages as one file: it loads nothing, leads nowhere, and holds what the pages hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.viewing.snapshot import write_snapshot
from tests.viewing.made_up import HOSTILE, made_up_run
from tests.viewing.test_web import ADDRESSES, Page


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    return [made_up_run(tmp_path / name, seed=seed).root for seed, name in enumerate(("one", "two"))]


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def test_a_snapshot_is_one_file_that_loads_nothing_and_changes_nothing(roots: list[Path], tmp_path: Path) -> None:
    before = files(roots[0])
    write_snapshot(roots, tmp_path / "made" / "snap.html")
    assert files(roots[0]) == before
    text = (tmp_path / "made" / "snap.html").read_text()
    page = Page(text)
    assert not {"script", "img", "form", "iframe", "link", "base"} & set(page.tags)
    assert page.tags.count("style") == 1
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ADDRESSES or value.startswith("#"), (tag, name, value)
    names = Counter(value for _, name, value in page.attributes if name == "id")
    assert not [name for name, count in names.items() if count > 1]
    targets = {value.removeprefix("#") for _, name, value in page.attributes if name == "href"}
    assert targets <= names.keys()
    assert "content=\"default-src 'none'; style-src" in text


def test_a_snapshot_holds_what_the_pages_hold(roots: list[Path], tmp_path: Path) -> None:
    write_snapshot(roots, tmp_path / "snap.html")
    text = Page((tmp_path / "snap.html").read_text()).text
    for shown in ("ppo/score_mean", "after 3", "reward model agrees on 3 of 3 pairs", "Who worked when", "key-of-sft"):
        assert shown in text, shown
    assert HOSTILE.replace("\0", "")[:60] in text


def test_the_command_writes_it_and_stops(roots: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["view", str(roots[0]), "--snapshot", str(tmp_path / "snap.html")])
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'snap.html'}: {roots[0]} as it is now\n")
    assert (tmp_path / "snap.html").stat().st_size > 50_000
