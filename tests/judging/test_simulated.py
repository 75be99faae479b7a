"""A simulated judge errs as often as it says, is calibrated, and shows the bias that it was given."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.data.tasks import build_task
from rlhf_ray.data.world_demonstrations import flawed_response, good_response
from rlhf_ray.data.world_rubric import grade
from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.constitution import Principle
from rlhf_ray.judging.positions import PositionBias
from rlhf_ray.judging.questions import Question
from rlhf_ray.judging.simulated import FLAWLESS, Simulated, error_range
from rlhf_ray.judging.verdicts import Opinion
from rlhf_ray.records import TextPrompt

CONFIG = load_config(Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml")


def length(prompt: TextPrompt, response: str) -> dict[str, float]:
    """Longer is better, by as much as makes all differ."""
    return {"gold": float(len(response)), "brief": -float(len(response))}


def pairs(count: int) -> list[tuple[Question, Question]]:
    """Both orders of pairs in which the longer response comes first, then last."""
    prompts = [TextPrompt(f"p{n}", ()) for n in range(count)]
    return [
        (Question("compare", (), prompt, ("longer", "short")), Question("compare", (), prompt, ("short", "longer")))
        for prompt in prompts
    ]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.4])
def test_a_simulated_judge_errs_at_its_rate_in_both_orders_alike(rate: float) -> None:
    judge = Simulated(length, error_rate=rate)
    said = [(judge.probability_of_a(one), judge.probability_of_a(other)) for one, other in pairs(4000)]
    assert all(first == pytest.approx(1.0 - second) for first, second in said)
    wrong = sum(first < 0.5 for first, _ in said) / len(said)
    assert wrong == pytest.approx(rate, abs=0.02)


def test_a_simulated_judge_is_as_often_right_as_it_is_sure() -> None:
    judge = Simulated(length, error_rate=0.2)
    said = sorted((max(p, 1 - p), p > 0.5) for p in (judge.probability_of_a(one) for one, _ in pairs(4000)))
    for part in (said[start : start + 1000] for start in range(0, 4000, 1000)):
        sure, right = (sum(column) / len(part) for column in zip(*part, strict=True))
        assert right == pytest.approx(sure, abs=0.04)
    assert said[0][0] < 0.65 < 0.95 < said[-1][0]  # pairs differ in difficulty


@pytest.mark.parametrize(("rate", "low", "high"), [(0.0, 0.0, 0.0), (0.1, 0.0, 0.2), (0.4, 0.3, 0.5), (0.5, 0.5, 0.5)])
def test_a_pair_s_own_error_has_the_rate_as_its_mean(rate: float, low: float, high: float) -> None:
    assert error_range(rate) == pytest.approx((low, high))


def test_a_position_bias_is_found_by_the_statistics() -> None:
    judge = Simulated(length, position_bias=0.4)
    opinions = [Opinion.of([judge.probability_of_a(q) for q in both]) for both in pairs(3000)]
    bias = PositionBias.of(opinions)
    # It says A with 0.4, else the truth, which stands first in half of the answers: 0.4 + 0.6 / 2.
    assert bias.first.low < 0.7 < bias.first.high
    # Both orders agree unless the truth is shown second and A is said: 1 - 0.4.
    assert bias.consistent.low < 0.6 < bias.consistent.high


def test_equal_grades_tie_and_another_axis_is_judged_by_its_own_grade() -> None:
    judge = Simulated(length)
    prompt = TextPrompt("p", ())
    assert judge.probability_of_a(Question("compare", (), prompt, ("same", "size"))) == 0.5
    brief = Principle("brief", axis="brief")
    assert judge.probability_of_a(Question("compare", (), prompt, ("longer", "short"), brief)) == 0.0
    with pytest.raises(ConfigError, match="does not grade; choose one of brief, gold"):
        judge.probability_of_a(Question("compare", (), prompt, ("a", "b"), Principle("x", axis="kind")))


async def test_its_answers_come_as_text_or_as_masses() -> None:
    [(first, _)] = pairs(1)
    for in_text in (True, False):
        [(place, answer)] = [each async for each in Simulated(length, in_text=in_text).answers([first])]
        assert (place, answer.text) == (0, "A")
        assert answer.masses == ({} if in_text else {"A": 1.0, "B": 0.0})


async def test_the_microworld_s_critic_sees_what_the_rubric_sees_and_its_reviser_mends_it() -> None:
    world = CONFIG.data.world
    critic = Simulated(grade, expert=good_response)
    draw = random.Random(0)
    task = build_task(CONFIG.data)
    revised = 0
    for prompt in task.prompts("train")[:100]:
        response = flawed_response(prompt, world.mix, draw)
        principle = Principle("p", axis="helpful")
        asked = [Question(purpose, (), prompt, (response,), principle) for purpose in ("critique", "revise")]
        said = {place: answer.text async for place, answer in critic.answers(asked)}
        flawless = grade(prompt, response)["helpful"] == 1.0
        assert (said[0] == FLAWLESS) == flawless
        assert (said[1] == response) or not flawless
        assert grade(prompt, said[1])["helpful"] == 1.0
        revised += not flawless
    assert 20 < revised < 80


async def test_a_critic_with_errors_overlooks_flaws_at_its_rate() -> None:
    critic = Simulated(length, error_rate=0.3, expert=lambda prompt, draw: "better")
    principle = Principle("p", axis="brief")  # below 1 for every response
    asked = [Question("critique", (), TextPrompt(f"p{n}", ()), ("bad",), principle) for n in range(2000)]
    overlooked = [answer.text == FLAWLESS async for _, answer in critic.answers(asked)]
    assert sum(overlooked) / 2000 == pytest.approx(0.3, abs=0.03)
