"""A headless browser for tests, and a labelling server in a process of its own that can be killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHECKOUT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
)
REMEDY = (
    "these tests drive a browser and found none of "
    f"{', '.join(NAMES)}: run launch/setup.sh --dev as root, or install one (Debian: apt-get install chromium), "
    "or set RLHF_RAY_NO_BROWSER=1 to go without"
)
PATIENCE_S = 120.0


def browser_path() -> str:
    """Where the browser is. Without one the test fails, unless the environment says that there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is not None:
        return path
    if os.environ.get("RLHF_RAY_NO_BROWSER") == "1":
        pytest.skip("RLHF_RAY_NO_BROWSER=1")
    pytest.fail(REMEDY)


@contextmanager
def headless() -> Iterator[Browser]:
    """A browser with no state."""
    path = browser_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page, and what it did that it must not do: requests to elsewhere, dialogs, errors of its scripts."""

    page: Page
    origin: str
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(1000 * PATIENCE_S)
        self.page.on("request", lambda request: self._require_own(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def _require_own(self, url: str) -> None:
        if not url.startswith((f"{self.origin}/", "data:")):
            self.elsewhere.append(url)

    def forgive(self, pattern: str) -> None:
        """Leave out errors that the test itself caused."""
        self.errors = [error for error in self.errors if not re.search(pattern, error)]


@dataclass
class Server:
    """``rlhf-ray label`` on a port that stays the same when it is started again."""

    store: Path
    options: tuple[str, ...] = ()
    port: int = 0  # a free one, the first time
    process: subprocess.Popen[str] | None = None
    links: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it answers. Links are printed the first time only, and remembered here."""
        log = self.store.with_suffix(".log")
        command = [sys.executable, "-m", "launch.cli", "label", str(self.store), "--port", str(self.port)]
        command += ["--annotator", "ann", "--annotator", "bob", "--overlap-every", "0", "--gold-every", "0"]
        command += self.options
        with log.open("w") as file:
            self.process = subprocess.Popen(command, cwd=CHECKOUT, stdout=file, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + PATIENCE_S
        while "manager:" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.port = int(re.findall(r"on http://127\.0\.0\.1:(\d+)$", log.read_text(), re.MULTILINE)[0])
        self.links |= dict(re.findall(r"^(\w+): (http\S+)$", log.read_text(), re.MULTILINE))

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
