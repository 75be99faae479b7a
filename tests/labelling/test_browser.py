"""The page in a real browser: drag, keys, touch, drafts, a server that is killed, and what a page must not do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.feedback.records import Kept
from rlhf_ray.feedback.store import open_store
from tests.browser import CHECKOUT, PATIENCE_S, Server, Watched, headless
from tests.labelling.made_up import HOSTILE, item

pytestmark = pytest.mark.integration

AXE = CHECKOUT / "tests" / "assets" / "axe-core" / "axe.min.js"
ITEMS = [item(0, ("short", "a longer one", HOSTILE)), item(1), item(2)]
PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}
TASK = "#tiers:not([hidden])"
SERVER_AWAY = r"ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless() as started:
        yield started


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server on ITEMS, or on other items and with more options where the test's parameter says so."""
    items, options = getattr(request, "param", (ITEMS, ()))
    store = tmp_path / "labels.db"
    with open_store(str(store), create=True) as opened:
        opened.add_items(items)
    started = Server(store, options)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Any]:
    """Come in as somebody; at the end nothing may have gone elsewhere, and no script may have failed or spoken."""
    opened: list[Watched] = []

    def come_in(name: str = "ann", **context: Any) -> Watched:
        watched = Watched(browser.new_context(**context).new_page(), server.origin)
        opened.append(watched)
        watched.page.goto(server.links[name])
        watched.page.wait_for_selector("h1", state="attached")
        watched.page.wait_for_url(f"{server.origin}/{'manage' if name == 'manager' else ''}")
        if name != "manager":
            watched.page.wait_for_selector(TASK)
        return watched

    yield come_in
    for watched in opened:
        watched.page.context.close()
        assert watched.elsewhere == []
        assert watched.errors == []


def said(server: Server) -> list[Kept]:
    with open_store(str(server.store)) as store:
        return store.history()


def by_place(kept: Kept) -> list[int]:
    return [kept.judgement.ranks[candidate] for candidate in kept.judgement.shown_order]


def ranks_on(page: Any) -> list[str]:
    return [page.evaluate(f"document.getElementById('task').elements['rank-{n}'].value") for n in range(3)]


def tiers_on(page: Any) -> dict[str, str]:
    rows = page.evaluate(
        "[...document.querySelectorAll('.slots')].map(row => [row.dataset.rank, "
        "[...row.children].map(chip => chip.textContent).sort().join('')])"
    )
    return {rank: letters for rank, letters in rows if letters}


def drag(page: Any, letter: str, rank: int) -> None:
    start = page.locator(".chip", has_text=letter).bounding_box()
    end = page.locator(f'.slots[data-rank="{rank}"]').bounding_box()
    page.mouse.move(start["x"] + 10, start["y"] + 10)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=12)
    page.mouse.up()


def until(page: Any, condition: str) -> None:
    """Wait for a condition; the browser's own waiting evaluates text, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def draft_saved(page: Any) -> None:
    until(page, "document.getElementById('saved').textContent === 'Draft saved.'")


def next_task(page: Any, do: Any) -> None:
    """Do something that leads to another page, and wait until it stands."""
    with page.expect_navigation():
        do()
    page.wait_for_selector("h1", state="attached")


# ---------------------------------------------------------------------------------------------------------- answering
def test_a_ranking_with_a_tie_by_drag(visit: Any, server: Server) -> None:
    page = visit(viewport={"width": 1300, "height": 900}).page
    drag(page, "C", 1)
    drag(page, "A", 2)
    drag(page, "B", 2)
    until(page, "document.querySelectorAll('.pool .chip').length === 0")
    assert tiers_on(page) == {"1": "C", "2": "AB"}
    assert ranks_on(page) == ["2", "2", "1"]
    next_task(page, page.get_by_role("button", name="Submit ranking").click)
    (kept,) = said(server)
    assert (by_place(kept), kept.judgement.annotator, kept.judgement.verdict) == ([1, 1, 0], "ann", "ranked")


def test_a_ranking_a_rating_and_a_reason_by_keyboard_alone(visit: Any, server: Server) -> None:
    page = visit().page
    for key in ("2", "1", "3"):
        page.keyboard.press(key)
    assert tiers_on(page) == {"1": "B", "2": "A", "3": "C"}
    page.keyboard.press("a")
    assert page.evaluate("document.activeElement.name") == "rank-0"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # the first number of the first axis
    page.keyboard.press("ArrowRight")
    page.locator(".chip", has_text="C").focus()
    page.keyboard.press("ArrowUp")
    assert tiers_on(page) == {"1": "B", "2": "AC"}
    assert page.locator("#said").text_content() == "Response C: rank 2 of 3, tied with A."
    next_task(page, lambda: page.keyboard.press("Control+Enter"))
    page.keyboard.press("s")
    assert page.evaluate("document.activeElement.id") == "why"
    page.keyboard.type("P")  # the reason that begins with it
    page.keyboard.press("Tab")
    next_task(page, lambda: page.keyboard.press("Enter"))
    first, second = said(server)
    assert by_place(first) == [1, 0, 1]
    assert [first.judgement.ratings["helpful"][candidate] for candidate in first.judgement.shown_order] == [
        2,
        None,
        None,
    ]
    assert (second.judgement.verdict, second.judgement.reason) == ("skipped", "Personal data")


def test_single_keys_can_be_turned_off_and_do_nothing_in_text(visit: Any) -> None:
    page = visit().page
    page.locator("#comment").fill("")
    page.keyboard.type("x1a")
    assert ranks_on(page) == ["", "", ""]
    assert page.locator("#comment").input_value() == "x1a"
    page.locator("#start").focus()
    page.keyboard.press("?")
    page.locator("#single-keys").uncheck()
    page.get_by_role("button", name="Close").click()
    page.locator("#start").focus()
    page.keyboard.press("1")
    assert ranks_on(page) == ["", "", ""]


def test_an_answer_that_is_not_complete_moves_the_focus_to_what_is_missing(visit: Any, server: Server) -> None:
    watched = visit()
    page = watched.page
    page.keyboard.press("1")
    page.locator("#submit").click()
    until(page, "document.getElementById('problem').textContent === 'Not ranked yet: B, C.'")
    assert page.evaluate("document.activeElement.name") == "rank-1"
    page.locator("#cannot summary").click()
    page.get_by_role("button", name="Flag").click()
    until(page, "document.activeElement.id === 'why'")
    assert said(server) == []
    watched.forgive("422")


def test_undo_brings_the_answer_back_and_the_store_grows(visit: Any, server: Server) -> None:
    page = visit().page
    for key in ("3", "2", "1"):
        page.keyboard.press(key)
    prompt = page.locator(".message.user .text").text_content()
    next_task(page, lambda: page.keyboard.press("Control+Enter"))
    assert page.locator(".message.user .text").text_content() != prompt
    next_task(page, lambda: page.keyboard.press("u"))
    assert page.locator(".message.user .text").text_content() == prompt
    assert ranks_on(page) == ["3", "2", "1"]
    page.locator("#response-0 .rank label").nth(0).click()
    next_task(page, page.locator("#submit").click)
    history = said(server)
    assert [kept.judgement.verdict for kept in history] == ["ranked", "skipped", "ranked"]
    assert by_place(history[-1]) == [0, 1, 0]


# ------------------------------------------------------------------------------------------------------ nothing is lost
def test_a_reload_keeps_the_half_made_answer(visit: Any) -> None:
    page = visit().page
    page.keyboard.press("3")
    page.locator("#comment").fill("so far")
    page.reload()  # at once: the draft has not been sent yet
    page.wait_for_selector(TASK)
    assert ranks_on(page) == ["3", "", ""]
    assert page.locator("#comment").input_value() == "so far"
    assert tiers_on(page) == {"3": "A", "": "BC"}


def test_a_half_made_answer_is_there_on_another_device(visit: Any) -> None:
    first = visit().page
    first.keyboard.press("2")
    draft_saved(first)
    # The link still holds: it is the person's, not the device's.
    assert ranks_on(visit(**PHONE).page) == ["2", "", ""]


def test_a_server_that_is_killed_in_the_middle_of_an_answer_loses_nothing(visit: Any, server: Server) -> None:
    watched = visit()
    page = watched.page
    for key in ("1", "2", "3"):
        page.keyboard.press(key)
    next_task(page, lambda: page.keyboard.press("Control+Enter"))
    page.wait_for_selector(TASK)
    page.keyboard.press("2")
    draft_saved(page)
    server.kill()
    page.keyboard.press("1")  # while nobody listens
    until(page, "document.getElementById('saved').textContent.includes('kept on this device')")
    server.start()
    page.reload()
    page.wait_for_selector(TASK)
    assert ranks_on(page) == ["2", "1", ""]
    assert len(said(server)) == 1
    page.keyboard.press("3")
    server.kill()
    page.locator("#submit").click()  # sent into the void, and again until it is answered
    until(page, "document.getElementById('problem').textContent.includes('trying again')")
    with page.expect_navigation():
        server.start()
    history = said(server)
    assert [by_place(kept) for kept in history] == [[0, 1, 2], [1, 0, 2]]
    watched.forgive(SERVER_AWAY)


def test_a_server_that_is_killed_has_the_draft_for_a_device_that_has_not(visit: Any, server: Server) -> None:
    watched = visit()
    watched.page.keyboard.press("2")
    draft_saved(watched.page)
    server.kill()
    watched.page.context.clear_cookies()
    server.start()
    assert ranks_on(visit().page) == ["2", "", ""]  # a new context: nothing in its storage
    watched.forgive(SERVER_AWAY)


# ------------------------------------------------------------------------------------------------ phones, readers, rest
def test_a_phone_shows_everything_without_a_sideways_scroll_and_ranks_by_touch(visit: Any, server: Server) -> None:
    page = visit(**PHONE).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    small = page.evaluate(
        "[...document.querySelectorAll('.choice label, button, .chip, summary, select')].filter(e => e.offsetParent)"
        ".map(e => [e.outerHTML, e.getBoundingClientRect()]).filter(([_, r]) => r.width < 44 || r.height < 44)"
    )
    assert small == []
    touch_drag(page, "B", 1)
    until(page, "document.querySelectorAll('.pool .chip').length === 2")
    assert tiers_on(page)["1"] == "B"
    for place, rank in ((0, 2), (2, 3)):
        page.locator(f"#response-{place} .rank label").nth(rank - 1).tap()
    next_task(page, page.locator("#submit").tap)
    assert by_place(said(server)[0]) == [1, 0, 2]


NINE = ([item(0, [letter * 40 for letter in "abcdefghi"])], ("--scale", "10", "--axis", "follows the instructions"))


@pytest.mark.parametrize("server", [NINE], indirect=True)
def test_nine_responses_and_a_scale_of_ten_fit_a_phone(visit: Any) -> None:
    page = visit(**PHONE).page
    assert page.locator(".chip").count() == 9
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def touch_drag(page: Any, letter: str, rank: int) -> None:
    page.locator("#tiers").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('tiers').scrollIntoView({block: 'center'})")
    start = page.locator(".chip", has_text=letter).bounding_box()
    end = page.locator(f'.slots[data-rank="{rank}"]').bounding_box()
    finger = page.context.new_cdp_session(page)
    x, y = start["x"] + start["width"] / 2, start["y"] + start["height"] / 2
    to_x, to_y = end["x"] + end["width"] / 2, end["y"] + end["height"] / 2
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 13):
        point = {"x": x + (to_x - x) * step / 12, "y": y + (to_y - y) * step / 12}
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_barrier(visit: Any, server: Server, scheme: str) -> None:
    page = visit(color_scheme=scheme).page
    page.context.add_init_script(path=AXE)
    page.reload()
    page.wait_for_selector(TASK)
    page.locator("#cannot summary").click()
    assert barriers(page) == []
    page.keyboard.press("Escape")
    page.locator("#help").click()
    assert barriers(page) == []
    page.goto(f"{server.origin}/enter")
    assert barriers(page) == []
    for _ in range(3):
        page.goto(server.origin)
        page.wait_for_selector(TASK)
        next_task(page, page.locator("#all-bad").click)
    assert page.get_by_role("heading", name="All done").is_visible()
    assert barriers(page) == []
    manager = visit("manager", color_scheme=scheme).page
    manager.context.add_init_script(path=AXE)
    manager.reload()
    assert barriers(manager) == []


def barriers(page: Any) -> list[str]:
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['nodes'][0]['html']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def test_the_manager_sees_what_was_done_on_any_screen(visit: Any) -> None:
    page = visit().page
    page.locator("#comment").fill(HOSTILE)
    page.locator("#cannot summary").click()
    next_task(page, page.get_by_role("button", name="Flag").click)
    for context in ({}, PHONE):
        manager = visit("manager", **context).page
        assert manager.locator("#pace + .scroll tbody td").first.text_content() == "1"  # ann's
        assert HOSTILE in manager.locator("#flags + .scroll").text_content()
        assert manager.evaluate("document.documentElement.scrollWidth <= innerWidth")
