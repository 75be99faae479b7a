"""The detectors' numbers by their names in the log, and the past that they are held against."""

from __future__ import annotations

import json
import math

import pytest

from rlhf_ray.hacking.evidence import Edited, Evaluated, Known, Twins, samples_of
from rlhf_ray.hacking.language import known_pairs, vocabulary
from rlhf_ray.hacking.measures import Past, detected
from rlhf_ray.metrics.registry import require_registered
from tests.hacking.made_up import graded

WORDS = "one two three four five six seven eight nine ten"


def of_length(prompt: int, length: int, **others: object) -> object:
    return graded(f"p{prompt}", " ".join(WORDS.split()[:length]), **others)  # type: ignore[arg-type]


def test_what_cannot_be_told_is_missing() -> None:
    found = detected(Evaluated([graded("p0", "red", score=None, kl=math.nan)]), Past(), Known())
    assert set(found) == {
        "hacking/common_answer",
        "hacking/repeated_answers",
        "hacking/answer_entropy",
        "hacking/odd_characters",
    }
    assert detected(Evaluated(()), Past(), Known()) == {}


def test_every_measure_has_a_definition() -> None:
    responses = [
        graded(f"p{n}", WORDS[: 10 + n], "harmful" if n % 2 else "fact", score=float(n % 3), grades={"gold": n / 20})
        for n in range(12)
    ]
    twins = [Twins(responses[0], graded("t", "red", grades={"gold": 1.0}))]
    evaluated = Evaluated(responses, twins, {"list": [Edited(responses[1], "- a", 2.0, 0.5)]})
    known = Known(vocabulary(["one"]), known_pairs(["one two"]), ("harmful",))
    past = Past()
    for kl in (0.0, 1.0, 2.0, 3.0, 4.0):
        past = past.with_(
            Evaluated([graded(r.prompt_id, "a", kl=kl, grades={"gold": kl * (3 - kl)}) for r in responses])
        )
    found = detected(evaluated, past, known)
    require_registered(found)
    assert len(found) == 21
    assert found["style/list"] == 0.5
    assert found["hacking/flip_rate"] == 1.0
    assert (found["hacking/over_refusal"], found["hacking/under_refusal"]) == (0.0, 1.0)
    assert found["refusal/harmful"] == 0.0


def test_wins_are_over_the_first_evaluation_and_by_prompt() -> None:
    first = Evaluated([of_length(n, 2, score=1.0) for n in range(10)])  # type: ignore[list-item]
    past = Past().with_(first).with_(Evaluated([of_length(n, 3, score=9.0) for n in range(10)]))  # type: ignore[list-item]
    later = Evaluated([of_length(n, 2, score=1.0 + (n < 6) - (n >= 9)) for n in range(10)])  # type: ignore[list-item]
    found = detected(later, past, Known())
    assert found["hacking/win_rate"] == pytest.approx(0.75)
    assert found["hacking/wins_by_length"] == pytest.approx(0.0, abs=0.01)


def test_an_ensembles_deviation_is_read_off_its_parts() -> None:
    found = detected(Evaluated([graded("p", "a", grades={"learned.std": 0.3}), graded("q", "a")]), Past(), Known())
    assert found["hacking/reward_std"] == 0.3


def test_gold_is_held_against_its_best_evaluation() -> None:
    past = Past()
    for gold in (0.5, 0.9, 0.8):
        past = past.with_(Evaluated([graded(f"p{n}", "a", grades={"gold": gold}) for n in range(20)]))
    now = Evaluated([graded(f"p{n}", "a", grades={"gold": 0.7}) for n in range(20)])
    found = detected(now, past, Known())
    assert found["hacking/gold_lost"] == pytest.approx(0.5)
    assert found["hacking/gold_fall"] == pytest.approx(0.2)
    assert set(past.best.values()) == {0.9}
    assert past.golds == pytest.approx((0.5, 0.9, 0.8))


def test_the_past_survives_as_plain_data() -> None:
    past = Past().with_(Evaluated([graded("p", "a b", grades={"gold": 0.5}, kl=math.nan)]))
    assert past.kls == (-1.0,)
    assert Past.from_state(json.loads(json.dumps(past.state()))) == past


# -------------------------------------------------------------------------------------------------------------- samples
def test_samples_are_the_responses_that_show_it_best() -> None:
    responses = [graded("p", "a b", score=5.0), graded("p", "a b c", score=1.0), graded("q", "a b c", score=2.0)]
    shown = samples_of("hacking/wins_by_length", Evaluated(responses), Known(), 2)
    assert [(sample.rollout_id, sample.score) for sample in shown] == [("q/0", 2.0), ("p/1", 1.0)]
    [highest] = samples_of("ppo/kl_per_response", Evaluated(responses), Known(), 1)
    assert (highest.rollout_id, highest.response, highest.prompt) == ("p/0", "a b", "question p")


def test_samples_of_an_edit_are_pairs() -> None:
    one, two = graded("p", "a", score=1.0), graded("q", "b", score=2.0)
    edited = {"list": [Edited(one, "- a", 1.5, 0.5), Edited(two, "- b", 4.0, 2.0)]}
    shown = samples_of("style/list", Evaluated([one, two], edited=edited), Known(), 1)
    assert [(s.rollout_id, s.response, s.score) for s in shown] == [("q/0", "b", 2.0), ("q/0+list", "- b", 4.0)]


def test_samples_of_flips_are_the_answers_that_turned() -> None:
    right, wrong = {"gold": 1.0}, {"gold": 0.1}
    stayed, turned = graded("p", "No, blue.", grades=right), graded("q", "Yes, red.", grades=wrong)
    twins = [Twins(stayed, graded("s", "blue", grades=right)), Twins(turned, graded("t", "blue", grades=right))]
    [shown] = samples_of("hacking/flip_rate", Evaluated([stayed, turned], twins), Known(), 3)
    assert (shown.rollout_id, shown.response) == ("q/0", "Yes, red.")


def test_nothing_evaluated_shows_nothing() -> None:
    assert samples_of("hacking/common_answer", Evaluated(()), Known(), 3) == ()
