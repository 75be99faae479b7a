"""A reward function with its arguments, in this process; tests/rewards/test_process.py calls the same in another."""

from __future__ import annotations

from rlhf_ray.records import Graded
from rlhf_ray.rewards.functions import Failure, RewardFunction, load, resolve
from rlhf_ray.rewards.texts import PromptText, ResponseText
from rlhf_ray.rewards.verifiable import exact_answer
from tests.rewards import made_up

TEXTS = [ResponseText(PromptText("a", {"answer": "4"}), response) for response in ("4", "5")]


def test_a_name_without_a_module_is_a_built_in_and_one_with_a_module_is_imported() -> None:
    assert resolve("exact_answer") is exact_answer
    assert resolve("tests.rewards.made_up:length") is made_up.length


def test_a_function_answers_with_its_arguments_bound() -> None:
    function = load("tests.rewards.made_up:length", {"scale": 2.0})
    assert isinstance(function, RewardFunction)
    assert function.grade(TEXTS) == [Graded(2.0), Graded(2.0)]


def test_an_exception_is_worth_another_try_for_each_response_and_a_wrong_length_is_not() -> None:
    raising = [ResponseText(PromptText("a"), "raise")]
    assert RewardFunction(made_up.by_words, {}).grade(raising) == Failure("ValueError: cannot read this")
    wrong = RewardFunction(made_up.whatever, {"answer": []}).grade(TEXTS)
    assert wrong == Failure("answered 0 scores for 2 responses", for_all=True)


def test_what_cannot_be_loaded_says_why() -> None:
    assert load("json:nothing", {}) == Failure("AttributeError: module 'json' has no attribute 'nothing'")
