"""Small steps give the law of a large one, where they follow one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.planning.calibration import Calibration, ProbePoint, non_negative_fit, predict
from rlhf_ray.planning.observed import compared, observed_seconds, predicted_seconds


def point(rollouts: int) -> ProbePoint:
    """A machine that takes 10 ms an engine step, 1 ms a sampled token, 1 s + 2 ms a trained token."""
    responses, prompts = rollouts * 20, rollouts * 10
    return ProbePoint(
        rollouts=rollouts,
        prompt_tokens=prompts,
        response_tokens=responses,
        longest=40,
        generate=0.010 * 40 + 0.001 * responses,
        score=0.1,
        update=1.0 + 0.002 * (responses + prompts),
        sync=0.5,
    )


def calibration(*sizes: int) -> Calibration:
    return Calibration("a machine", "a model", tuple(point(size) for size in sizes), 1.0, 1.0, 1.0, 1.0)


def test_a_large_step_follows_from_small_ones() -> None:
    found = predict(calibration(16, 64), rollouts=128, prompt=10, response=20, longest=40)
    assert found.generate == pytest.approx(0.4 + 0.001 * 2560)
    assert found.update == pytest.approx(1.0 + 0.002 * 3840)
    assert found.score == pytest.approx(0.1)
    assert found.sync == 0.5
    assert predicted_seconds(found)["step"] == pytest.approx(found.in_turn)


def test_shorter_responses_take_less_time() -> None:
    found = predict(calibration(16, 64), rollouts=128, prompt=10, response=5, longest=10)
    assert found.generate == pytest.approx(0.1 + 0.001 * 640)


def test_no_coefficient_is_negative() -> None:
    assert non_negative_fit([(1, 1), (1, 2)], [2.0, 1.0]) == pytest.approx((1.5, 0.0))
    assert non_negative_fit([(1, 1), (1, 2)], [3.0, 5.0]) == pytest.approx((1.0, 2.0))


def test_one_size_tells_no_law() -> None:
    with pytest.raises(DataError, match="two sizes"):
        predict(calibration(16, 16), rollouts=128, prompt=10, response=20, longest=40)


def test_a_calibration_survives_the_cache() -> None:
    made = calibration(16, 64)
    assert Calibration.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    assert (made.mean_prompt, made.mean_response, made.longest) == (10, 20, 40)


def test_the_observed_seconds_are_medians_of_a_runs_steps(tmp_path: Path) -> None:
    rows = [{"step": 0, "time/evaluate": 3.0}]
    rows += [
        {"time/step": s, "time/generate": s / 2, "time/score": 0.0, "time/update": s / 4, "ppo/response_length": 9.0}
        for s in (1.0, 2.0, 30.0)
    ]
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = observed_seconds(tmp_path)
    assert found == observed_seconds(tmp_path / "ppo")
    assert (found["step"], found["generate"], found["sync"], found["steps"]) == (2.0, 1.0, 0.0, 3.0)
    beside = compared({"step": 4.0, "sync": 1.0}, found)
    assert beside["step"] == {"predicted": 4.0, "observed": 2.0, "ratio": 2.0}
    assert beside["sync"]["ratio"] == 0.0


def test_a_run_without_steps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--observed"):
        observed_seconds(tmp_path)
