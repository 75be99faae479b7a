"""An OpenAI-compatible endpoint over real sockets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf_ray.config.judge import JudgeConfig
from rlhf_ray.judging.endpoint import Endpoint, EndpointError
from rlhf_ray.judging.questions import Answer, Question, Usage
from rlhf_ray.records import Message
from rlhf_ray.rewards.service import Service as Client
from tests.judging.made_up import prompt
from tests.rewards.service import Reply, Service, running

ASK = Question("compare", (Message("user", "A or B?"),), prompt(1), ("x", "y"))


@pytest.fixture
def service() -> Iterator[Service]:
    with running() as service:
        yield service


def completion(text: str, top: list[tuple[str, float]] | None = None, usage: tuple[int, int] | None = (12, 1)) -> Any:
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if top is not None:
        likely = [{"token": token, "logprob": math.log(p)} for token, p in top]
        choice["logprobs"] = {"content": [{"token": text, "top_logprobs": likely}]}
    billed = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
    return {"choices": [choice], **billed}


def endpoint(service: Service, *, slept: list[float] | None = None, **settings: Any) -> Endpoint:
    config = JudgeConfig(kind="endpoint", url="http://x/v1", model="m", max_retries=2, num_parallel=3, **settings)
    pauses = slept if slept is not None else []
    return Endpoint(
        config, Client(service.url, timeout_s=5.0, max_retries=2, seed=0, token="secret", sleep=pauses.append)
    )


async def ask(judge: Endpoint, *questions: Question) -> dict[int, Answer]:
    try:
        return {place: answer async for place, answer in judge.answers(questions)}
    finally:
        judge.close()


async def test_probabilities_of_the_first_token_are_summed_over_its_spellings(service: Service) -> None:
    top = [("A", 0.5), (" A", 0.1), ("B", 0.2), ("The", 0.1)]
    service.replies = [Reply(body=completion("A", top))]
    found = await ask(endpoint(service), ASK)
    assert found[0].masses == pytest.approx({"A": 0.6, "B": 0.2})
    assert found[0].usage == Usage(12, 1)
    [asked] = service.asked
    assert asked == {
        "model": "m",
        "messages": [{"role": "user", "content": "A or B?"}],
        "temperature": 1.0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert service.authorizations == ["Bearer secret"]


async def test_text_is_asked_for_with_temperature_limit_and_the_vote_s_number_as_seed(service: Service) -> None:
    service.replies = [Reply(body=completion("It is B"))]
    settings = {"verdict": "text", "temperature": 0.7, "max_tokens": 99, "num_votes": 2}
    vote = Question("compare", ASK.messages, ASK.prompt, ASK.responses, vote=1)
    found = await ask(endpoint(service, **settings), vote)
    assert (found[0].text, found[0].masses) == ("It is B", {})
    assert {name: service.asked[0][name] for name in ("temperature", "max_tokens", "seed")} == {
        "temperature": 0.7,
        "max_tokens": 99,
        "seed": 1,
    }


async def test_a_busy_endpoint_is_asked_again_after_a_pause(service: Service) -> None:
    service.replies = [Reply(429, "busy"), Reply(503, "down"), Reply(body=completion("A", [("A", 1.0)]))]
    slept: list[float] = []
    found = await ask(endpoint(service, slept=slept), ASK)
    assert found[0].text == "A"
    assert len(slept) == 2
    assert 0 < slept[0] <= 0.5 <= slept[1] <= 1.0


async def test_many_questions_each_get_their_own_answer(service: Service) -> None:
    service.replies = [Reply(body=completion("A", [("A", 1.0)]))]
    found = await ask(endpoint(service), *(ASK for _ in range(10)))
    assert sorted(found) == list(range(10))
    assert len(service.asked) == 10


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(401, "no"), "answers 401: .*all earlier answers are kept"),
        (Reply(body=completion("A")), "no chat completion with top_logprobs; use judge.verdict=text"),
        (Reply(body={"error": "x"}), "no chat completion"),
        (Reply(body=b"<html>"), "no chat completion"),
    ],
)
async def test_an_endpoint_that_cannot_answer_is_told(service: Service, reply: Reply, message: str) -> None:
    service.replies = [reply]
    with pytest.raises(EndpointError, match=message):
        await ask(endpoint(service), ASK)


async def test_after_a_failure_nothing_more_is_asked_and_no_answer_that_came_is_lost(service: Service) -> None:
    good = Reply(body=completion("A", [("A", 1.0)]), delay_s=0.05)
    service.replies = [good, Reply(401, "no"), good]
    came: list[int] = []

    async def collect(judge: Endpoint) -> None:
        async for place, _ in judge.answers([ASK] * 30):
            came.append(place)

    with pytest.raises(EndpointError, match="answers 401"):
        await collect(endpoint(service))
    assert len(came) == len(service.asked) - 1
    assert len(service.asked) < 10


async def test_an_answer_without_a_bill_costs_what_it_can_cost_at_most(service: Service) -> None:
    service.replies = [Reply(body=completion("A", [("A", 1.0)], usage=None))]
    judge = endpoint(service)
    found = await ask(judge, ASK)
    assert found[0].usage == judge.bound(ASK) == Usage(len("A or B?") + 64, 1)
