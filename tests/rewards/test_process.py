"""Reward functions in their process: what they answer, and that none of them can hold up or bring down a run."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.records import Graded
from rlhf_ray.rewards.process import FunctionLoadError, FunctionProcess, FunctionReward
from rlhf_ray.rewards.texts import PromptText, ResponseText

Make = Callable[..., FunctionReward]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make a reward of tests/rewards/made_up.py; its process ends with the test."""
    made: list[FunctionReward] = []

    def start(name: str, timeout_s: float = 30.0, **arguments: Any) -> FunctionReward:
        made.append(FunctionReward(f"tests.rewards.made_up:{name}", arguments=arguments, timeout_s=timeout_s))
        return made[-1]

    yield start
    for reward in made:
        reward.close()


def texts(*responses: str) -> list[ResponseText]:
    return [ResponseText(PromptText("a\nb", {"n": "7"}), response) for response in responses]


# -------------------------------------------------------------------------------------------------------------- answers
def test_a_function_is_given_prompts_responses_facts_and_arguments(make: Make) -> None:
    assert make("length", scale=0.5).grade(texts("abcd", "")) == (Graded(2.0), Graded(0.0))
    assert make("facts_and_prompts").grade(texts("c", "d")) == (Graded(1.0), Graded(0.0))


def test_a_function_that_has_a_parameter_for_tokens_is_given_them(make: Make) -> None:
    plain, reward = make("length"), make("by_token")
    assert (plain.wants_tokens, reward.wants_tokens) == (False, True)
    text = ResponseText(PromptText(""), "a. b.", tokens=("a", ".", " b", ".", ""))
    assert reward.grade([text]) == (Graded(1.0, ((1, 0.5), (3, 0.5))),)


def test_arrays_are_answers_and_no_texts_are_not_asked_about(make: Make) -> None:
    assert make("arrays").grade(texts("a", "b")) == (Graded(0.0), Graded(0.25))
    assert make("whatever", answer="nonsense").grade([]) == ()


def test_what_a_function_prints_is_no_answer(make: Make) -> None:
    assert make("by_words").grade(texts("print")) == (Graded(5.0),)


def test_one_process_answers_every_call(make: Make) -> None:
    reward = make("counting")
    assert [reward.grade(texts("x"))[0].score for _ in range(3)] == [1.0, 2.0, 3.0]


# ------------------------------------------------------------------------------------------------------------- failures
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("raise", "ValueError: cannot read this"),
        ("exit", "its process died"),
        ("die", "its process died"),
        ("sleep", "took more than 0.5 s"),
        ("backtrack", "took more than 0.5 s"),
    ],
)
def test_a_bad_response_fails_alone_for_the_reason_that_is_named(make: Make, word: str, reason: str) -> None:
    answers = make("by_words", timeout_s=4.0).grade(texts("one", word, "three", "none"))
    assert [graded.score for graded in answers] == [3.0, None, 5.0, None]
    assert [graded.failed for graded in answers] == ["", reason, "", ""]


def test_nan_is_passed_on_for_the_sum_to_refuse(make: Make) -> None:
    (graded,) = make("by_words").grade(texts("nan"))
    assert graded.score is not None
    assert math.isnan(graded.score)


def test_a_list_of_the_wrong_length_fails_all_and_is_not_tried_one_by_one(make: Make) -> None:
    answers = make("whatever", answer=[1.0]).grade(texts("x", "y"))
    assert answers == (Graded(None, failed="answered 1 scores for 2 responses"),) * 2


def test_an_element_that_is_no_number_fails_alone(make: Make) -> None:
    bad, good = make("whatever", answer=["x", 2.0]).grade(texts("x", "y"))
    assert (bad, good) == (Graded(None, failed="answered 'x' (str) where a number was expected"), Graded(2.0))


def test_a_batch_in_which_everything_hangs_takes_twice_its_limit_at_most(make: Make) -> None:
    reward = make("by_words", timeout_s=1.0)
    begun = time.monotonic()
    answers = reward.grade(texts(*["sleep"] * 20))
    assert time.monotonic() - begun < 2.0 + 1.5  # and one start of the process
    assert {graded.failed for graded in answers[:2]} == {"took more than 0.125 s"}
    assert answers[-1].failed == "not tried: its batch took more than twice 1 s"


def test_a_process_that_was_ended_is_gone_and_the_next_call_has_another(make: Make) -> None:
    reward = make("counting")
    reward.grade(texts("x"))
    assert reward._process is not None
    pid = reward._process._process.pid
    reward.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert reward.grade(texts("x"))[0].score == 1.0


def test_a_function_that_hangs_ends_even_when_nobody_waits_for_it_any_more() -> None:
    process = FunctionProcess("tests.rewards.made_up:by_words", {})
    with pytest.raises(TimeoutError):
        process.call(texts("backtrack"), 0.2)
    assert process._process.wait(timeout=10) == -signal.SIGALRM
    process.end()


# -------------------------------------------------------------------------------------------------------------- loading
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tests.rewards.made_up:lenght", "AttributeError: module 'tests.rewards.made_up' has no attribute 'lenght'"),
        ("tests.rewards.made_down:length", "ModuleNotFoundError: No module named 'tests.rewards.made_down'"),
        ("tests.rewards.made_up:NOT_A_FUNCTION", "TypeError: it is a int, not a function"),
        ("exact_anwser", "LookupError: .*no built-in reward has this name, only choice_answer, exact_answer"),
        ("tests.rewards.made_up:whatever", "TypeError: missing a required argument: 'answer'"),
        ("regex_match", "TypeError: missing a required argument: 'pattern'"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_as_it_is_loaded(name: str, reason: str) -> None:
    with pytest.raises(FunctionLoadError, match=f"reward function '{name}' cannot be used: {reason}"):
        FunctionReward(name, arguments={}, timeout_s=1.0)


def test_an_argument_too_many_is_refused() -> None:
    with pytest.raises(FunctionLoadError, match="TypeError: got an unexpected keyword argument 'limits'"):
        FunctionReward("length_at_most", arguments={"limit": 3, "limits": 4}, timeout_s=1.0)


def test_a_module_that_dies_as_it_is_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly.py").write_text("import os\nos._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FunctionLoadError, match="its process died"):
        FunctionReward("deadly:reward", arguments={}, timeout_s=1.0)
