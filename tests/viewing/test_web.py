"""The pages over HTTP: that hostile text stays text, what is refused, what each page has."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from rlhf_ray.config.web import WebConfig
from rlhf_ray.viewing.library import Library
from rlhf_ray.viewing.run import open_runs
from rlhf_ray.viewing.web import NAVIGATION, build_app
from rlhf_ray.web.protection import CONTENT_POLICY
from tests.viewing.made_up import HOSTILE, MadeUp, made_up_run, rollout, save_step, shard

TAGS = {"script", "style", "img", "iframe", "object", "embed", "base"}
ADDRESSES = ("href", "src", "action", "srcset", "formaction", "xlink:href")
PATHS = [path for path, _ in NAVIGATION]
HOSTILE_PATHS = [
    "/rollouts?kind={0}&text={0}&prompt_id={0}&alarm={0}&finish={0}",
    "/curves?pattern={0}",
    "/answers?text={0}&kind={0}",
    "/preferences?text={0}&kind={0}&annotator={0}",
    "/rollouts?sort={0}",
    "/rollout?stage=ppo&id={0}",
    "/prompt?stage={0}&id={0}",
    "/lineage?other={0}",
    "/?run={0}",
]


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def require_harmless(page: Page) -> None:
    assert page.tags.count("script") == 1
    assert not {"style", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style", (tag, name)
        if name in ADDRESSES:
            assert value.startswith(("/", "#")) or value == "", (tag, name, value)
            assert not value.startswith("//"), value


@pytest.fixture
def made(tmp_path: Path) -> MadeUp:
    return made_up_run(tmp_path / "run")


@pytest.fixture
def browser(made: MadeUp, tmp_path: Path) -> Iterator[TestClient]:
    runs = open_runs([made.root, made_up_run(tmp_path / "other", steps=2, seed=1).root])
    libraries = [Library(run) for run in runs]
    for library in libraries:
        library.refresh()
    app = build_app(runs, libraries, WebConfig())
    with TestClient(app, base_url="http://127.0.0.1:8100", raise_server_exceptions=True) as client:
        yield client


@pytest.mark.parametrize("path", [*PATHS, "/lineage?other=1", "/configuration?other=1", "/curves?x=time&only=outside"])
@pytest.mark.parametrize("run", [0, 1])
def test_every_page_stands_and_what_models_and_people_wrote_stays_text(
    browser: TestClient, path: str, run: int
) -> None:
    answer = browser.get(path, params={"run": run} if "?" not in path else None)
    assert answer.status_code == 200
    require_harmless(Page(answer.text))


@pytest.mark.parametrize("path", ["/rollouts", "/answers", "/preferences", "/alarms"])
def test_hostile_text_is_shown_letter_by_letter(browser: TestClient, path: str) -> None:
    assert HOSTILE.replace("\0", "") in Page(browser.get(path).text).text.replace("\0", "").replace("\ufffd", "")


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_hostile_address_is_answered_with_a_harmless_page(browser: TestClient, path: str) -> None:
    parts = path.split("?")
    params = dict(pair.split("=") for pair in parts[1].split("&"))
    answer = browser.get(parts[0], params={name: value.format(HOSTILE) for name, value in params.items()})
    assert answer.status_code in (200, 400, 404)
    require_harmless(Page(answer.text))


def test_a_rollout_is_shown_by_token_in_every_colour(browser: TestClient) -> None:
    page = browser.get("/rollout", params={"stage": "ppo", "id": "2/p0/0"})
    assert page.status_code == 200
    require_harmless(Page(page.text))
    assert (
        page.text.count('class="t p3') >= len(HOSTILE.encode()) - 3
    )  # every log-ratio is 0.5; some letters have two bytes
    for colour in ("kl", "surprise", "penalty"):
        assert browser.get("/rollout", params={"stage": "ppo", "id": "2/p0/0", "colour": colour}).status_code == 200
    refused = browser.get("/rollout", params={"stage": "ppo", "id": "2/p0/0", "colour": "value"})
    assert refused.status_code == 400
    assert "the trainer&#39;s log-probabilities are not here" in page.text


def test_values_and_advantages_are_shown_where_the_trainer_left_them(browser: TestClient, made: MadeUp) -> None:
    asked = {"stage": "ppo", "id": "3/p1/0"}
    page = browser.get("/rollout", params={**asked, "colour": "advantage"})
    require_harmless(Page(page.text))
    assert page.text.count('class="t p3') == len("answer 3 1") + 2  # every advantage is 1.2; end and scale
    assert "are not here" not in page.text
    value = browser.get("/rollout", params={**asked, "colour": "value"}).text
    assert value.count('title="-1.000 reward"') == value.count('title="1.000 reward"') == 1
    path = made.ppo / "rollouts" / "step_000003" / "experience_00000.safetensors"
    path.write_bytes(b"damaged")
    assert "experience_00000.safetensors: cannot be understood" in browser.get("/rollout", params=asked).text


def test_a_prompt_is_followed_over_training(browser: TestClient) -> None:
    text = Page(browser.get("/prompt", params={"stage": "ppo", "id": "p1"}).text).text
    assert text.index("answer 1 1") < text.index("answer 2 1") < text.index("answer 3 1")
    assert browser.get("/prompt", params={"stage": "ppo", "id": "none"}).status_code == 404


def test_an_alarm_leads_to_the_rollouts_that_it_names(browser: TestClient) -> None:
    links = [
        value
        for tag, name, value in Page(browser.get("/alarms").text).attributes
        if name == "href" and "/rollout?" in value
    ]
    assert links == ["/rollout?run=0&stage=ppo&id=2%2Fp1%2F0"] or links == ["/rollout?stage=ppo&id=2%2Fp1%2F0"]
    assert browser.get(links[0]).status_code == 200


def test_fifty_rollouts_are_a_page(browser: TestClient, made: MadeUp) -> None:
    many = [rollout(9, n, f"number {n}") for n in range(120)]
    save_step(made.ppo, 9, [shard(many, [float(n) for n in range(120)])])
    library = Library(open_runs([made.root])[0])
    library.refresh()
    page = Page(browser.get("/rollouts", params={"step_from": 9, "sort": "score", "page": 2}).text)
    assert "120 rollouts, 51 to 100" in page.text
    assert "number 69" in page.text
    assert "number 70" not in page.text


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("score_from=high", "score_from ('high') is no number."),
        ("kl_to=nan", "kl_to ('nan') is no number."),
        ("step_from=1.5", "step_from ('1.5') is no whole number."),
        ("page=9999999999999999999999", "is too large."),
        ("sort=id;drop", "sort ('id;drop') is none of step, score, kl, length, prompt."),
        ("stage=elsewhere", "stage ('elsewhere') is none of ppo."),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(browser: TestClient, query: str, message: str) -> None:
    answer = browser.get(f"/rollouts?{query}")
    assert answer.status_code == 400
    assert message in Page(answer.text).text


def test_a_rollout_whose_step_is_gone_is_told(browser: TestClient, made: MadeUp) -> None:
    for path in (made.ppo / "rollouts" / "step_000002").iterdir():
        path.unlink()
    answer = browser.get("/rollout", params={"stage": "ppo", "id": "2/p0/0"})
    assert answer.status_code == 410
    assert "not a whole step" in answer.text


@pytest.mark.parametrize(
    "path", ["/", "/stamp", "/nowhere", "/static/view.js", "/static/shared/vendor/pico/pico.min.css"]
)
def test_every_answer_has_the_headers_that_keep_it_to_itself(browser: TestClient, path: str) -> None:
    headers = browser.get(path).headers
    assert headers["content-security-policy"] == CONTENT_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")


def test_nothing_is_changed_and_no_other_name_is_answered(browser: TestClient) -> None:
    assert browser.post("/rollouts").status_code == 405
    assert browser.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert browser.get("/static/../web.py").status_code == 404
    assert browser.get("/static/%2e%2e/web.py").status_code == 404


def test_halves_of_letters_do_not_break_a_page(browser: TestClient, made: MadeUp) -> None:
    (made.ppo / "alarms.jsonl").write_text('{"step": 1, "name": "\\ud800x", "samples": ["\\udfff"]}\n')
    answer = browser.get("/alarms")
    assert answer.status_code == 200
    assert "?x" in answer.text


def test_the_stamp_moves_with_the_run(browser: TestClient, made: MadeUp) -> None:
    before = browser.get("/stamp").json()
    assert (before["steps"], before["of"]) == (3, 3)
    assert browser.get("/stamp").json() == before
    made.log(4, ppo__score_mean=1.0)
    assert browser.get("/stamp").json()["stamp"] != before["stamp"]


def test_a_run_of_which_nothing_is_known_but_its_settings_is_shown(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    runs = open_runs([tmp_path])
    library = Library(runs[0])
    library.refresh()
    client = TestClient(build_app(runs, [library], WebConfig()), base_url="http://localhost:8100")
    for path in PATHS:
        assert client.get(path).status_code == 200, path
