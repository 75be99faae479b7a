"""A service over real sockets: it errs, is slow, answers nonsense, and is asked again as politely as it wishes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.records import Graded
from rlhf_ray.rewards.http import HttpReward, require_service
from rlhf_ray.rewards.service import ServiceError, retry_after_s
from rlhf_ray.rewards.sources import open_source
from rlhf_ray.rewards.texts import PromptText, ResponseText
from tests.rewards.service import Reply, Service, running

TEXTS = [ResponseText(PromptText("a", {"answer": "4"}), "yes"), ResponseText(PromptText("b"), "no")]


Make = Callable[..., HttpReward]


@pytest.fixture
def service() -> Iterator[Service]:
    with running() as service:
        yield service


@pytest.fixture
def slept() -> list[float]:
    """The pauses that were made: none of them takes time."""
    return []


@pytest.fixture
def make(service: Service, slept: list[float]) -> Iterator[Make]:
    made: list[HttpReward] = []

    def start(url: str = service.url, *, timeout_s: float = 5.0, max_retries: int = 3, **arguments: Any) -> HttpReward:
        made.append(
            HttpReward(
                url, arguments=arguments, timeout_s=timeout_s, max_retries=max_retries, seed=3, sleep=slept.append
            )
        )
        return made[-1]

    yield start
    for reward in made:
        reward.close()


def reasons(answers: tuple[Graded, ...]) -> set[str]:
    assert len(answers) == len(TEXTS)
    assert all(graded.score is None for graded in answers)
    return {graded.failed for graded in answers}


# ---------------------------------------------------------------------------------------------------- answers
def test_a_batch_goes_out_as_json_and_comes_back_as_scores(service: Service, make: Make) -> None:
    assert make().grade(TEXTS) == (Graded(0.5), Graded(2.0))
    assert service.asked == [{"prompts": ["a", "b"], "responses": ["yes", "no"], "facts": [{"answer": "4"}, {}]}]


def test_arguments_are_sent_along(service: Service, make: Make) -> None:
    make(strict=True).grade(TEXTS)
    assert service.asked[0]["arguments"] == {"strict": True}


def test_null_is_no_score_and_step_rewards_are_read(service: Service, make: Make) -> None:
    service.replies = [Reply(body={"scores": [None, 1.0], "step_rewards": [[], [[0, 0.5], [3, -1]]]})]
    assert make().grade(TEXTS) == (Graded(None), Graded(1.0, ((0, 0.5), (3, -1.0))))


def test_no_texts_are_not_asked_about(service: Service, make: Make) -> None:
    assert make().grade([]) == ()
    assert service.asked == []


# ---------------------------------------------------------------------------------------------------- retries
@pytest.mark.parametrize("status", [500, 502, 503, 408, 429])
def test_what_may_pass_is_tried_again(service: Service, make: Make, slept: list[float], status: int) -> None:
    service.replies = [Reply(status), Reply(status), Reply()]
    assert make().grade(TEXTS) == (Graded(0.5), Graded(2.0))
    assert len(service.asked) == 3
    assert len(slept) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 422, 301])
def test_what_will_not_pass_is_not_tried_again(service: Service, make: Make, status: int) -> None:
    service.replies = [Reply(status, body=b"no such thing", headers={"Location": service.url})]
    assert reasons(make().grade(TEXTS)) == {f"{service.url} answers {status}: no such thing"}
    assert len(service.asked) == 1


def test_tries_come_to_an_end_and_the_reason_is_that_of_the_last(service: Service, make: Make) -> None:
    service.replies = [Reply(500), Reply(503, body=b"overloaded")]
    assert reasons(make(max_retries=2).grade(TEXTS)) == {f"{service.url} answers 503: overloaded after 3 tries"}
    assert len(service.asked) == 3
    assert reasons(make(max_retries=0).grade(TEXTS)) == {f"{service.url} answers 503: overloaded"}


def test_pauses_double_and_the_same_seed_makes_the_same(service: Service, make: Make, slept: list[float]) -> None:
    service.replies = [Reply(500)]
    make(max_retries=8).grade(TEXTS)
    first = list(slept)
    slept.clear()
    make(max_retries=8).grade(TEXTS)
    assert slept == first
    for attempt, pause in enumerate(first):
        assert min(20.0, 0.25 * 2**attempt) <= pause <= min(20.0, 0.5 * 2**attempt)
    assert len({pause / 2**attempt for attempt, pause in enumerate(first[:5])}) == 5


def test_a_service_is_left_alone_for_as_long_as_it_asks(service: Service, make: Make, slept: list[float]) -> None:
    service.replies = [Reply(429, headers={"Retry-After": "7"}), Reply(503, headers={"Retry-After": "3600"}), Reply()]
    assert make().grade(TEXTS)[0] == Graded(0.5)
    assert slept == [7.0, 20.0]


def test_retry_after_may_be_seconds_or_a_date() -> None:
    now = datetime.now(UTC)
    assert retry_after_s({"Retry-After": "12"}) == 12.0
    assert 58 <= retry_after_s({"Retry-After": format_datetime(now + timedelta(seconds=60), usegmt=True)}) <= 60
    assert retry_after_s({"Retry-After": format_datetime(now - timedelta(seconds=60), usegmt=True)}) == 0.0
    assert [retry_after_s({"Retry-After": value}) for value in ("soon", "-3", "")] == [0.0] * 3
    assert retry_after_s({}) == 0.0


def test_a_service_that_is_down_is_not_asked_again_for_every_batch(service: Service, make: Make) -> None:
    service.replies = [Reply(500)]
    reward = make(max_retries=3)
    for _ in range(12):
        reasons(reward.grade(TEXTS))
    assert len(service.asked) == 12 + 16  # each batch once, and all the retries that were in store


# ---------------------------------------------------------------------------------------------------- time limits
def test_a_slow_answer_is_not_waited_for(service: Service, make: Make) -> None:
    service.replies = [Reply(delay_s=1.0)]
    begun = time.monotonic()
    assert reasons(make(timeout_s=0.2, max_retries=1).grade(TEXTS)) == {
        f"{service.url} does not answer within 0.2 s after 2 tries"
    }
    assert time.monotonic() - begun < 0.9


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "1000"}])
def test_an_answer_that_trickles_in_is_not_waited_for(service: Service, make: Make, headers: dict[str, str]) -> None:
    service.replies = [Reply(pause_s=0.05, headers=headers)]
    begun = time.monotonic()
    assert reasons(make(timeout_s=0.3, max_retries=0).grade(TEXTS)) == {f"{service.url} does not answer within 0.3 s"}
    assert time.monotonic() - begun < 0.9


def test_a_slow_answer_may_be_followed_by_one_in_time(service: Service, make: Make) -> None:
    service.replies = [Reply(delay_s=1.0), Reply()]
    assert make(timeout_s=0.3).grade(TEXTS) == (Graded(0.5), Graded(2.0))


def test_nobody_there_is_a_reason_too(service: Service, make: Make, slept: list[float]) -> None:
    (reason,) = reasons(make("http://127.0.0.1:9/score", max_retries=1).grade(TEXTS))
    assert reason.startswith("http://127.0.0.1:9/score cannot be reached: ")
    assert reason.endswith(" after 2 tries")
    assert len(slept) == 1


# ---------------------------------------------------------------------------------------------------- wrong shapes
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "answers what is not JSON: b'<html>'"),
        ([1, 2], 'answers JSON without a list "scores"'),
        ({"score": [1, 2]}, 'answers JSON without a list "scores"'),
        ({"scores": {"0": 1, "1": 2}}, 'answers JSON without a list "scores"'),
        ({"scores": [1]}, "answered 1 scores for 2 responses"),
        ({"scores": [1, False]}, 'answers "scores" that are true or false where numbers were expected'),
        ({"scores": [1, 2], "step_rewards": [[]]}, 'answers "step_rewards" that are no list of 2 lists'),
    ],
)
def test_a_wrong_shape_is_a_failure_and_never_a_score(service: Service, make: Make, body: object, reason: str) -> None:
    service.replies = [Reply(body=body)]
    (found,) = reasons(make().grade(TEXTS))
    assert found.startswith(f"{service.url} {reason}")
    assert len(service.asked) == 1


def test_an_element_of_the_wrong_shape_fails_alone(service: Service, make: Make) -> None:
    service.replies = [Reply(body={"scores": ["2", 1]}), Reply(body={"scores": [1, 2], "step_rewards": [[3], []]})]
    reward = make()
    assert reward.grade(TEXTS) == (Graded(None, failed="answered '2' (str) where a number was expected"), Graded(1.0))
    bad, good = reward.grade(TEXTS)
    assert bad.failed == "answered 3 (int) where a step reward, (index, value), was expected"
    assert good == Graded(2.0)


# ---------------------------------------------------------------------------------------------------- the door
def test_a_service_is_asked_about_nothing_before_a_run(service: Service) -> None:
    service.replies = [Reply(body={"scores": []})]
    require_service(service.url, arguments={"strict": True}, timeout_s=5)
    assert service.asked == [{"prompts": [], "responses": [], "facts": [], "arguments": {"strict": True}}]


@pytest.mark.parametrize("status", [400, 422])
def test_a_service_that_refuses_to_score_nothing_is_there(service: Service, status: int) -> None:
    service.replies = [Reply(status)]
    require_service(service.url, arguments={}, timeout_s=5)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(404, body=b""), "answers 404$"),
        (Reply(500, body=b""), "answers 500$"),
        (Reply(body={"scores": [1.0]}), "answered 1 scores for 0 responses"),
        (Reply(delay_s=1.0), r"does not answer within 0\.3 s"),
    ],
)
def test_a_service_that_cannot_be_used_is_refused(service: Service, reply: Reply, message: str) -> None:
    service.replies = [reply]
    with pytest.raises(ServiceError, match=message):
        require_service(service.url, arguments={}, timeout_s=0.3)


def test_tokens_are_sent_to_a_service_that_wants_them(service: Service) -> None:
    texts = [replace(TEXTS[0], tokens=("y", "es", "")), replace(TEXTS[1], tokens=("no", ""))]
    source = RewardSourceConfig(kind="http", url=service.url)
    for wanted in (True, False):
        with closing(open_source(replace(source, send_tokens=wanted), seed=0)) as reward:
            assert reward.wants_tokens == wanted
            reward.grade(texts)
    assert service.asked[0]["tokens"] == [["y", "es", ""], ["no", ""]]
    assert "tokens" not in service.asked[1]


# ------------------------------------------------------------------------------------------------------ who may ask
def test_the_token_that_the_environment_holds_is_sent_as_a_bearer_s(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = RewardSourceConfig(kind="http", url=service.url, token_env="SCORER_TOKEN")
    monkeypatch.setenv("SCORER_TOKEN", "s3cret")
    with closing(open_source(source, seed=0)) as reward:
        reward.grade(TEXTS)
    with closing(open_source(replace(source, token_env=""), seed=0)) as reward:
        reward.grade(TEXTS)
    assert service.authorizations == ["Bearer s3cret", None]


def test_a_token_that_is_not_set_is_an_error_before_anything_is_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"token_env \('SCORER_TOKEN'\) must name a variable that is set"):
        open_source(RewardSourceConfig(kind="http", url=service.url, token_env="SCORER_TOKEN"), seed=0)
    assert service.asked == []
