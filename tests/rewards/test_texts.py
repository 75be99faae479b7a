"""Rollouts become text in batches, and whatever a reward answers becomes scores or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Graded, Message, TextPrompt
from rlhf_ray.rewards.texts import PromptText, ResponseText, RolloutReward, WrongShapeError, read_answer
from tests import tiny

ROLLOUTS = tiny.rollouts(5)
PROMPTS = {rollout.prompt_id: PromptText(f"question {rollout.order}", {"n": "1"}) for rollout in ROLLOUTS}


class Recorder:
    """Scores a response by its number of words and remembers what it was given."""

    def __init__(self, *, wants_tokens: bool = False) -> None:
        self.wants_tokens = wants_tokens
        self.batches: list[list[ResponseText]] = []
        self.closed = False

    def grade(self, texts: Sequence[ResponseText]) -> tuple[Graded, ...]:
        self.batches.append(list(texts))
        return tuple(Graded(float(len(text.response.split()))) for text in texts)

    def close(self) -> None:
        self.closed = True


def decode(token_ids: Sequence[int]) -> str:
    return " ".join(f"<{token}>" for token in token_ids)


def rewarded(reward: Recorder, prompts: Mapping[str, PromptText] = PROMPTS) -> RolloutReward:
    return RolloutReward(reward, prompts=prompts, decode=decode, batch_size=2)


def test_every_rollout_is_decoded_beside_its_prompt_in_batches_of_bounded_size() -> None:
    reward = Recorder()
    answers = rewarded(reward).grade(ROLLOUTS)
    assert [graded.score for graded in answers] == [float(len(r.response_ids)) for r in ROLLOUTS]
    assert [len(batch) for batch in reward.batches] == [2, 2, 1]
    first = reward.batches[0][0]
    assert first == ResponseText(PromptText("question 0", {"n": "1"}), decode(ROLLOUTS[0].response_ids.tolist()))


def test_tokens_one_by_one_are_given_to_whom_wants_them() -> None:
    reward = Recorder(wants_tokens=True)
    rewarded(reward).grade(ROLLOUTS[:1])
    assert reward.batches[0][0].tokens == tuple(f"<{token}>" for token in ROLLOUTS[0].response_ids)


def test_a_prompt_without_text_is_an_error() -> None:
    with pytest.raises(RlhfError, match="rollout 'p0/0' answers a prompt of which its reward knows no text"):
        rewarded(Recorder(), {}).grade(ROLLOUTS)


def test_closing_reaches_the_reward() -> None:
    reward = Recorder()
    rewarded(reward).close()
    assert reward.closed


def test_a_prompts_text_is_its_messages_a_line_each() -> None:
    prompt = TextPrompt("p", (Message("system", "be kind"), Message("user", "hello")), facts={"answer": "4"})
    assert PromptText.of(prompt) == PromptText("be kind\nhello", {"answer": "4"})


@pytest.mark.parametrize(
    "answer",
    [[1, 0.5], (1.0, np.float32(0.5)), np.array([1.0, 0.5]), iter([True, 0.5]), [Graded(1.0), Graded(np.float64(0.5))]],
)
def test_any_list_of_numbers_is_an_answer(answer: Any) -> None:
    assert read_answer(answer, 2) == [Graded(1.0), Graded(0.5)]


def test_none_and_graded_are_answers() -> None:
    given = [None, Graded(None, failed="no"), Graded(1, ((0, 1), [np.int64(2), np.float32(0.5)]))]  # type: ignore[arg-type]
    assert read_answer(given, 3) == [Graded(None), Graded(None, failed="no"), Graded(1.0, ((0, 1.0), (2, 0.5)))]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], "answered 1 scores for 2 responses"),
        (None, r"answered None \(NoneType\) where a list of 2 scores was expected"),
        (0.5, r"answered 0\.5 \(float\) where a list of 2 scores was expected"),
        ("10", r"answered '10' \(str\) where a list"),
        ({0: 1.0, 1: 2.0}, r"\(dict\) where a list"),
    ],
)
def test_what_is_no_list_of_one_element_a_response_is_refused(answer: Any, message: str) -> None:
    with pytest.raises(WrongShapeError, match=message):
        read_answer(answer, 2)


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ("1", "answered '1' (str) where a number was expected"),
        ([1.0], "answered [1.0] (list) where a number was expected"),
        (
            Graded("1"),
            "answered Graded(score='1', step_rewards=(), failed='', parts={}) (Graded) where a number was expected",
        ),  # type: ignore[arg-type]
        (Graded(1.0, (3,)), "answered 3 (int) where a step reward, (index, value), was expected"),  # type: ignore[arg-type]
        (Graded(1.0, ((0.5, 1.0),)), "answered (0.5, 1.0) (tuple) where a step reward, (index, value), was expected"),  # type: ignore[arg-type]
        (Graded(1.0, 7), "answered 7 (int) where a step reward, (index, value), was expected"),  # type: ignore[arg-type]
    ],
)
def test_an_element_that_is_no_score_fails_alone(element: Any, reason: str) -> None:
    assert read_answer([element, 2.0], 2) == [Graded(None, failed=reason), Graded(2.0)]
