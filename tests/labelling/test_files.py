"""What the page is made of travels with the package, and what others wrote travels with its licence."""

from __future__ import annotations

import glob
import tomllib

import pytest

import tests.browser
from tests.browser import CHECKOUT, browser_path

ROOM = CHECKOUT / "rlhf_ray"
PAGES = (ROOM / "labelling", ROOM / "viewing", ROOM / "web")
PATTERNS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["rlhf_ray"]


def test_every_file_of_the_page_is_package_data() -> None:
    packed = {name for pattern in PATTERNS for name in glob.glob(pattern, root_dir=ROOM, recursive=True)}
    folders = [room / folder for room in PAGES for folder in ("static", "templates")]
    files = [path for folder in folders for path in folder.rglob("*.*")]
    names = {str(path.relative_to(ROOM)) for path in files if path.is_file()}
    assert {"labelling/static/label.js", "labelling/templates/task.html", "web/static/icon.svg"} <= names
    assert {"viewing/static/view.js", "viewing/templates/base.html"} <= names
    assert names <= packed


@pytest.mark.parametrize("folder", ["rlhf_ray/labelling/static/vendor", "rlhf_ray/web/static/vendor", "tests/assets"])
def test_what_others_wrote_has_its_licence_beside_it(folder: str) -> None:
    parts = [path for path in (CHECKOUT / folder).iterdir() if path.is_dir()]
    assert parts
    for part in parts:
        assert any("copyright" in path.read_text().lower() for path in part.glob("LICENSE*")), part


def test_without_a_browser_its_tests_fail_with_the_remedy_unless_they_are_declined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tests.browser.shutil, "which", lambda name: None)
    monkeypatch.delenv("RLHF_RAY_NO_BROWSER", raising=False)
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        browser_path()
    monkeypatch.setenv("RLHF_RAY_NO_BROWSER", "1")
    with pytest.raises(pytest.skip.Exception):
        browser_path()
