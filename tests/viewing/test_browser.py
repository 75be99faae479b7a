"""The pages in a real browser: live, by keyboard, on a phone, with 100,000 rollouts, and what a page must not do."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHECKOUT, PATIENCE_S, Watched, headless
from tests.viewing.made_up import HOSTILE, MadeUp, made_up_run, rollout, save_step, shard

pytestmark = pytest.mark.integration

AXE = CHECKOUT / "tests" / "assets" / "axe-core" / "axe.min.js"
PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1300, "height": 900}}
PAGES = [
    "/",
    "/curves",
    "/rollouts",
    "/rollout?stage=ppo&id=2/p0/0",
    "/rollout?stage=ppo&id=3/p0/0&colour=advantage",
    "/prompt?stage=ppo&id=p0",
    "/answers",
    "/preferences",
    "/timeline",
    "/alarms",
    "/lineage?other=1",
    "/configuration?other=1",
]
Visit = Callable[..., Watched]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless() as started:
        yield started


def serving(roots: list[Path], log: Path) -> Iterator[str]:
    """``rlhf-ray view`` in a process of its own; its address."""
    command = [sys.executable, "-m", "launch.cli", "view", *map(str, roots), "--port", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(r"on (http://127\.0\.0\.1:\d+)$", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return made_up_run(tmp_path_factory.mktemp("runs") / "run", steps=3, per_step=6)


@pytest.fixture(scope="module")
def origin(made: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    other = made_up_run(tmp_path_factory.mktemp("others") / "other", steps=2, seed=1)
    yield from serving([made.root, other.root], tmp_path_factory.mktemp("log") / "server.log")


@pytest.fixture
def visit(browser: Any, origin: str) -> Iterator[Visit]:
    """Open a page; at the end nothing may have gone elsewhere, and no script may have failed or spoken."""
    yield from visiting(browser, origin)


def visiting(browser: Any, origin: str) -> Iterator[Visit]:
    opened: list[Watched] = []

    def open_page(path: str, **context: Any) -> Watched:
        watched = Watched(browser.new_context(**context).new_page(), origin)
        opened.append(watched)
        watched.page.goto(f"{origin}{path}")
        until(watched.page, "document.querySelector('h1') !== null")
        return watched

    yield open_page
    for watched in opened:
        assert watched.page.title() != "owned"
        watched.page.context.close()
        assert watched.elsewhere == []
        assert watched.errors == []


def until(page: Any, condition: str) -> None:
    """Wait for a condition; the browser's own waiting evaluates text, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def indexed(page: Any, count: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while count not in page.content():
        assert time.monotonic() < deadline, page.content()[:3000]
        page.wait_for_timeout(500)
        page.reload()


@pytest.mark.parametrize("screen", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_barrier_or_a_sideways_scroll(visit: Visit, screen: dict[str, Any], scheme: str) -> None:
    barriers = {}
    for path in PAGES:
        page = visit(path, **screen, color_scheme=scheme, bypass_csp=True).page
        assert page.evaluate("document.documentElement.scrollWidth") <= screen["viewport"]["width"], path
        page.add_script_tag(path=str(AXE))
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
        barriers[path] = [(each["id"], [node["html"][:200] for node in each["nodes"][:3]]) for each in serious]
    assert not any(barriers.values()), {path: told for path, told in barriers.items() if told}


def test_a_step_that_is_logged_appears_by_itself_and_leaves_what_somebody_reads(visit: Visit, made: MadeUp) -> None:
    page = visit("/curves", **DESKTOP).page
    until(page, "!document.querySelector('label.live').hidden")
    page.wait_for_timeout(3500)  # it has looked once, and knows what was there
    before = page.evaluate("document.querySelector('#curve-ppo-score-mean .last').textContent")
    made.log(4, ppo__score_mean=12.5, ppo__kl_per_token=0.1)
    until(page, "document.querySelector('#curve-ppo-score-mean .last').textContent.includes('12.50')")
    assert "12.50" not in before
    assert page.url.endswith("/curves")
    page.locator("#curve-ppo-score-mean svg").focus()
    made.log(5, ppo__score_mean=13.5, ppo__kl_per_token=0.1)
    page.wait_for_timeout(7000)
    assert "13.50" not in page.evaluate("document.querySelector('#curve-ppo-score-mean .last').textContent")


def test_a_curve_is_read_by_pointer_and_by_arrow_keys(visit: Visit) -> None:
    page = visit("/curves?stage=ppo", **DESKTOP).page
    curve = page.locator("#curve-time-step svg")
    curve.scroll_into_view_if_needed()
    curve.hover()
    said = "document.querySelector('#curve-time-step .reading').textContent"
    until(page, f"{said}.startsWith('at 2: ')")
    curve.focus()
    page.keyboard.press("Home")
    until(page, f"{said}.startsWith('at 1: 4.000')")
    page.keyboard.press("ArrowRight")
    until(page, f"{said}.startsWith('at 2: 4.000')")


def test_hostile_responses_are_read_and_nothing_of_them_runs(visit: Visit) -> None:
    page = visit("/rollouts?prompt_id=p0", **DESKTOP).page
    indexed(page, "rollouts, 1 to")
    shown = page.locator(".row .open .text").first.text_content()
    assert shown.replace("\ufffd", "") == HOSTILE.replace("\0", "")
    page.locator(".row .open").first.click()
    until(page, "document.querySelectorAll('.tokens .t').length > 20")
    page.get_by_role("link", name="Surprise").click()
    until(page, "document.querySelector('.choices [aria-current]').textContent === 'Surprise'")
    page.get_by_text("The same prompt over training").click()
    until(page, "document.querySelectorAll('.row').length === 3")


def test_rollouts_are_filtered_by_keyboard_alone_on_a_phone(visit: Visit) -> None:
    page = visit("/rollouts", **PHONE).page
    indexed(page, "rollouts, 1 to")
    page.locator(".filters summary").focus()
    page.keyboard.press("Enter")
    page.locator("input[name=score_from]").focus()
    page.keyboard.type("3.25")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "score_from=3.25" in page.url
    assert page.locator(".count strong").text_content() == "3"  # of step 3: 3.3, 3.4 and 3.5


def test_another_run_is_chosen_in_the_bar(visit: Visit) -> None:
    page = visit("/rollouts", **DESKTOP).page
    with page.expect_navigation():
        page.locator("#run").select_option(label="other")
    assert page.locator(".brand").text_content() == "other"
    assert "run=1" in page.url


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_rollouts_are_sorted_filtered_and_paged(
    browser: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    made = made_up_run(tmp_path / "run", steps=1)
    for step in range(2, 102):
        own = [rollout(step, n, f"answer {n}") for n in range(1000)]
        shards = [
            shard(own[at : at + 250], [(n * 7919 % 1000) / 1000 + step for n in range(at, at + 250)])
            for at in range(0, 1000, 250)
        ]
        save_step(made.ppo, step, shards)
    for origin in serving([made.root], tmp_path / "server.log"):
        for visit in visiting(browser, origin):
            page = visit("/rollouts?sort=score", **DESKTOP).page
            deadline = time.monotonic() + 1200
            while "100,004 rollouts of steps" not in page.content():
                assert time.monotonic() < deadline, page.content()[:3000]
                page.wait_for_timeout(2000)
                page.reload()
            assert page.locator(".row .marks b").first.text_content() == "102.0"  # 101.999
            page.get_by_role("link", name="Last").first.click()
            until(page, "document.querySelector('.count').textContent.includes('100,001 to 100,004')")
            for query in (
                "sort=kl&page=1000",
                "text=answer+77&sort=length",
                "score_from=50&score_to=50.5&sort=kl",
                "prompt_id=p5",
            ):
                begun = time.monotonic()
                page.goto(f"{origin}/rollouts?{query}")
                record_property(query, round(time.monotonic() - begun, 3))
                print(f"{query}: {time.monotonic() - begun:.3f} s")
            assert page.locator(".count strong").text_content() == "100"
