"""The pages over HTTP: who gets in, what is refused, that hostile text stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rlhf_ray.config.labelling import LabellingConfig, ServingConfig
from rlhf_ray.labelling.guidelines import guidelines_of
from rlhf_ray.labelling.protection import MAX_BODY_BYTES
from rlhf_ray.labelling.web import build_app
from tests.labelling.made_up import HOSTILE, NO_EXTRAS, Office, item, office, ranked

ITEMS = [item(0, (HOSTILE, "fine")), item(1)]
SETTINGS = LabellingConfig(annotators=("ann", "bob"), assignment=NO_EXTRAS)
JSON = {"Accept": "application/json"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Office]:
    with office(tmp_path / "labels.db", ITEMS, SETTINGS, guidelines=f"# Rules\n\n{HOSTILE}\n\n[x](javascript:1)") as o:
        yield o


def client(here: Office, name: str = "", base: str = "http://127.0.0.1:8100") -> TestClient:
    """A browser, come in as ``name``."""
    browser = TestClient(build_app(here.desk), base_url=base, follow_redirects=False)
    if name:
        done = browser.post("/enter", data={"token": here.desk.new_link(name)})
        assert done.status_code == 303
    return browser


class Inputs(HTMLParser):
    """The hidden fields, and every tag, of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.hidden: dict[str, str] = {}
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        given = dict(attrs)
        if tag == "input" and given.get("type") == "hidden":
            self.hidden[str(given["name"])] = given.get("value") or ""


def form_of(browser: TestClient) -> dict[str, str]:
    page = browser.get("/")
    assert page.status_code == 200
    return Inputs(page.text[page.text.index('id="task"') :]).hidden


# ------------------------------------------------------------------------------------------------------- who gets in
def test_nobody_gets_in_without_a_link(here: Office) -> None:
    browser = client(here)
    for path in ("/", "/manage"):
        assert (browser.get(path).status_code, browser.get(path).headers["location"]) == (303, "/enter")
    wrong = browser.post("/enter", data={"token": "a" * 43})
    assert wrong.status_code == 403
    assert "set-cookie" not in wrong.headers
    for path in ("/draft", "/submit", "/undo", "/leave"):
        assert browser.post(path, data={"item": "i"}).status_code == 401
    assert here.store.history() == []


def test_a_link_gives_a_cookie_that_scripts_and_other_sites_do_not_get(here: Office) -> None:
    cookie = client(here).post("/enter", data={"token": here.desk.new_link("ann")}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie  # http on loopback


def test_behind_tls_the_cookie_is_for_this_host_and_tls_only(tmp_path: Path) -> None:
    serving = ServingConfig(public_url="https://label.example.org")
    with office(tmp_path / "a.db", ITEMS, replace(SETTINGS, serving=serving)) as here:
        browser = client(here, base="https://label.example.org")
        done = browser.post("/enter", data={"token": here.desk.new_link("ann")})
        assert re.match(r"__Host-rlhf_label=.*; Path=/; .*Secure", done.headers["set-cookie"])
        assert "max-age" in done.headers["strict-transport-security"]
        assert browser.get("/").status_code == 200


def test_a_new_link_ends_what_the_old_one_began(here: Office) -> None:
    browser = client(here, "ann")
    assert browser.get("/").status_code == 200
    here.desk.new_link("ann")
    assert browser.get("/").status_code == 303


def test_annotators_do_not_see_the_manager_s_page_and_managers_do_not_label(here: Office) -> None:
    assert client(here, "ann").get("/manage").status_code == 403
    manager = client(here, "manager")
    assert manager.get("/").headers["location"] == "/manage"
    page = manager.get("/manage")
    assert page.status_code == 200
    assert "Krippendorff" in page.text
    secret = Inputs(page.text).hidden["secret"]
    assert manager.post("/submit", data={"secret": secret, "verdict": "all_bad"}).status_code == 403


def test_leaving_takes_the_cookie_away(here: Office) -> None:
    browser = client(here, "ann")
    assert browser.post("/leave", data={"secret": form_of(browser)["secret"]}).headers["location"] == "/enter"
    assert browser.get("/").status_code == 303


# --------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("changes", "headers"),
    [
        ({"secret": ""}, {}),
        ({"secret": "0" * 64}, {}),
        ({"secret": "é"}, {}),
        ({}, {"Origin": "https://evil.example"}),
        ({}, {"Origin": "null"}),
        ({}, {"Sec-Fetch-Site": "cross-site"}),
        ({}, {"Sec-Fetch-Site": "same-site"}),
    ],
)
def test_a_form_that_another_site_sends_is_refused(
    here: Office, changes: dict[str, str], headers: dict[str, str]
) -> None:
    browser = client(here, "ann")
    form = {**form_of(browser), "verdict": "all_bad"}
    for path in ("/submit", "/draft", "/undo", "/leave"):
        assert browser.post(path, data={**form, **changes}, headers=headers).status_code == 403
    assert here.store.history() == []
    assert browser.post("/submit", data=form, headers={"Origin": "http://127.0.0.1:8100"}).status_code == 303


def test_the_secret_of_one_person_s_forms_is_of_no_use_to_another(here: Office) -> None:
    anns, bobs = client(here, "ann"), client(here, "bob")
    assert bobs.post("/submit", data={**form_of(bobs), "secret": form_of(anns)["secret"]}).status_code == 403


def test_a_request_by_another_name_of_this_machine_is_refused(here: Office) -> None:
    assert client(here).get("/enter", headers={"Host": "evil.example"}).status_code == 400
    assert client(here).get("/enter", headers={"Host": "localhost:8100"}).status_code == 200


def test_more_than_a_page_sends_is_refused(here: Office) -> None:
    browser = client(here, "ann")
    form = {**form_of(browser), "comment": "x" * MAX_BODY_BYTES}
    assert browser.post("/draft", data=form).status_code == 413


def test_who_asks_too_often_waits_and_others_do_not(tmp_path: Path) -> None:
    serving = ServingConfig(requests_per_minute=3, entries_per_minute=2)
    with office(tmp_path / "a.db", ITEMS, replace(SETTINGS, serving=serving)) as here:
        app = build_app(here.desk)
        browsers = [TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) for _ in range(2)]
        for name, browser in zip(("ann", "bob"), browsers, strict=True):
            browser.post("/enter", data={"token": here.desk.new_link(name)})
        assert [browsers[0].get("/").status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = browsers[0].get("/")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert browsers[1].get("/").status_code == 200
        guesses = [browsers[1].post("/enter", data={"token": f"no{n}"}).status_code for n in range(3)]
        assert guesses == [403, 403, 429]


# ------------------------------------------------------------------------------------------------------------- pages
@pytest.mark.parametrize("path", ["/", "/enter", "/manage", "/static/label.js", "/nowhere", "/submit"])
def test_every_answer_has_the_headers(here: Office, path: str) -> None:
    headers = client(here, "ann").get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("img-src") == "'self' data:"
    assert set(policy.values()) == {"'self'", "'none'"}  # nothing inline, nothing evaluated, nothing from elsewhere
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")


def test_a_page_that_fails_has_the_headers_too(here: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = TestClient(
        build_app(here.desk), base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False
    )
    browser.post("/enter", data={"token": here.desk.new_link("ann")})
    monkeypatch.setattr(here.desk, "place", lambda name: 1 / 0)
    failed = browser.get("/")
    assert (failed.status_code, failed.text) == (500, "Internal Server Error")
    assert "content-security-policy" in failed.headers


def test_hostile_responses_and_guidelines_stay_text(here: Office) -> None:
    browser = client(here, "ann")
    first = Inputs(browser.get("/").text)
    page = browser.get("/").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "img" not in first.tags
    assert not {name for name in first.attributes if name.startswith("on") or name == "style"}
    assert page.count("<script") == 3  # ours
    assert 'href="javascript' not in page


def test_hostile_comments_stay_text_on_the_manager_s_page(here: Office) -> None:
    browser = client(here, "ann")
    browser.post("/submit", data={**form_of(browser), "verdict": "flagged", "comment": HOSTILE})
    page = client(here, "manager").get("/manage").text
    assert "&lt;script&gt;alert(1)" in page
    assert "script" not in Inputs(page).tags


def test_guidelines_are_markdown_without_html_and_their_version_is_that_of_the_text() -> None:
    shown = guidelines_of("**bold** <b>raw</b> ![i](http://x/y.png)")
    assert "<strong>bold</strong> &lt;b&gt;raw&lt;/b&gt;" in shown.html
    assert "<img" not in shown.html
    assert shown.version == guidelines_of(shown.text).version != guidelines_of("other").version


# --------------------------------------------------------------------------------------------------------- labelling
def test_a_plain_form_without_scripts_labels(here: Office) -> None:
    browser = client(here, "ann")
    form = form_of(browser)
    count = len(here.store.item(form["item"]).candidates)
    done = browser.post("/submit", data={**form, "verdict": "ranked", **ranked(*range(1, count + 1))})
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert form_of(browser)["item"] != form["item"]


def test_a_submission_that_is_repeated_is_one_judgement(here: Office) -> None:
    browser = client(here, "ann")
    form = {**form_of(browser), "verdict": "all_bad"}
    answers = [browser.post("/submit", data=form, headers=JSON).json() for _ in range(3)]
    assert answers == [{"outcome": "kept"}, {"outcome": "kept_before"}, {"outcome": "kept_before"}]
    assert len(here.store.history()) == 1


def test_an_answer_that_is_not_complete_says_so_and_keeps_what_is_filled_in(here: Office) -> None:
    browser = client(here, "ann")
    form = {**form_of(browser), "verdict": "ranked", "rank-0": "2", "comment": "half"}
    told = browser.post("/submit", data=form, headers=JSON)
    assert (told.status_code, told.json()) == (422, {"message": "Not ranked yet: B.", "field": "rank-1"})
    page = browser.post("/submit", data=form)
    assert page.status_code == 422
    assert "Not ranked yet: B." in page.text
    assert re.search(r'name="rank-0" value="2" checked', page.text)
    assert ">half</textarea>" in page.text


def test_a_draft_is_shown_again_to_its_author_and_to_nobody_else(here: Office) -> None:
    anns, bobs = client(here, "ann"), client(here, "bob")
    form = form_of(anns)
    saved = anns.post("/draft", data={**form, "revision": "1", "rank-1": "1", "comment": "only mine"})
    assert saved.status_code == 204
    assert "only mine" in anns.get("/").text
    assert "only mine" not in bobs.get("/").text
    bobs.post("/draft", data={**form_of(bobs), "item": form["item"], "revision": "9", "comment": "not mine"})
    assert "not mine" not in anns.get("/").text


def test_undo_shows_the_answer_again(here: Office) -> None:
    browser = client(here, "ann")
    form = form_of(browser)
    browser.post("/submit", data={**form, "verdict": "all_bad", "comment": "none of them"})
    page = browser.get("/").text
    undo = Inputs(page[: page.index("<main")]).hidden
    assert browser.post("/undo", data={"secret": undo["secret"], "judgement": undo["judgement"]}).status_code == 303
    assert form_of(browser)["item"] == form["item"]
    assert "none of them" in browser.get("/").text
    assert len(here.store.history()) == 2


def test_nonsense_in_a_form_is_an_answer_and_never_an_error_of_the_server(here: Office) -> None:
    browser = client(here, "ann")
    form = form_of(browser)
    nonsense: list[dict[str, Any]] = [
        {"item": "x" * 500, "verdict": "ranked"},
        {"base": "9" * 40, "verdict": "all_bad", "item": "\x00"},
        {"base": "-1", "verdict": "\u0000", "rank-0": "\u0661"},
        {"revision": "999999999999", "verdict": ""},
        {"judgement": "1e9"},
    ]
    for each in nonsense:
        for path in ("/submit", "/draft", "/undo"):
            done = browser.post(path, data={**form, **each}, headers=JSON)
            assert done.status_code in (204, 303, 422), (path, each, done.status_code)
            if done.status_code == 422:
                assert set(json.loads(done.text)) == {"message", "field"}
    assert here.store.history() == []
