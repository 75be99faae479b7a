"""Every wait ends, and every failure says who failed at what."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from ray.exceptions import ActorDiedError as RayActorDiedError
from ray.exceptions import ObjectLostError, RayTaskError

from actors.answers import ActorDiedError, ActorFailedError, ActorTimeoutError, answer, answers
from rlhf_ray.errors import BlockLostError, ConfigError, RlhfError


def failing(error: BaseException) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def raised_in_an_actor(cause: Exception) -> BaseException:
    """What Ray raises at the caller: an error that is a RayTaskError and of the cause's class at once."""
    error: BaseException = RayTaskError("update", "Traceback ...\nin the actor", cause).as_instanceof_cause()
    return error


async def given(value: Any, delay: float = 0.0) -> Any:
    await asyncio.sleep(delay)
    return value


async def test_an_answer_is_what_the_actor_returned() -> None:
    assert await answer(given(3), who="trainer rank 0", verb="update", timeout_s=5) == 3


async def test_an_actor_that_does_not_answer_is_named_with_verb_and_limit() -> None:
    with pytest.raises(ActorTimeoutError, match=r"^generator 1 has not finished 'generate' within 0\.01 s \(cluster\."):
        await answer(given(3, 60), who="generator 1", verb="generate", timeout_s=0.01)


async def test_an_actor_that_died_is_named() -> None:
    with pytest.raises(ActorDiedError, match=r"^reward model 0 died in 'score': "):
        await answer(failing(RayActorDiedError()), who="reward model 0", verb="score", timeout_s=5)


async def test_our_own_errors_come_back_as_themselves() -> None:
    error = ConfigError("training.lora.target_modules", ["x"], "names modules that the model lacks", "choose")
    with pytest.raises(ConfigError) as caught:
        await answer(failing(raised_in_an_actor(error)), who="trainer rank 0", verb="build", timeout_s=5)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("cause", [ZeroDivisionError("by zero"), TimeoutError("a socket")])
async def test_any_other_error_names_the_actor_and_keeps_its_traceback(cause: Exception) -> None:
    with pytest.raises(RlhfError, match=r"(?s)^trainer rank 1 failed in 'update': .*in the actor") as caught:
        await answer(failing(raised_in_an_actor(cause)), who="trainer rank 1", verb="update", timeout_s=5)
    assert type(caught.value) is ActorFailedError


@pytest.mark.parametrize("where", ["the reference itself", "what the actor was given"])
async def test_a_lost_object_is_no_fault_of_the_actor_and_names_who_was_asked(where: str) -> None:
    lost = ObjectLostError("00" * 28, None, "")
    raised = lost if where == "the reference itself" else raised_in_an_actor(lost)
    with pytest.raises(BlockLostError, match=r"^reference 0\b.*'logprobs'"):
        await answer(failing(raised), who="reference 0", verb="logprobs", timeout_s=5)


async def test_answers_come_back_in_the_order_of_the_members() -> None:
    refs = [given("a", 0.02), given("b", 0.0), given("c", 0.01)]
    assert await answers(refs, who="x", verb="y", timeout_s=5) == ["a", "b", "c"]


async def test_the_first_failure_is_raised_at_once_with_the_members_number() -> None:
    begun = time.perf_counter()
    refs = [given("a", 60), failing(RayActorDiedError()), given("c", 60)]
    with pytest.raises(ActorDiedError, match=r"^trainer rank 1 died in 'update'"):
        await answers(refs, who="trainer rank", verb="update", timeout_s=60)
    assert time.perf_counter() - begun < 5
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}
