"""What stands between our runs and TRL's: prompts out, answers in, settings from the run. TRL is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import learning_trl
from benchmarks.learning_point import Point
from benchmarks.learning_trl import Material, settings, trl_curve
from rlhf_ray.config.load import load_config
from rlhf_ray.records import Message, Prompt, TextPrompt

HELDOUT = {name: TextPrompt(name, (Message("user", name),)) for name in ("a", "b")}


def material() -> Material:
    """Two held-out prompts; a response is graded by its first token, in tenths."""
    prompts = {
        "train": [Prompt("t", np.array([5, 6], dtype=np.int32), order=0)],
        "heldout": [Prompt(name, np.array([7], dtype=np.int32), order=i) for i, name in enumerate(HELDOUT)],
    }
    return Material(
        config=load_config("configs/quickstart.yaml", ["ppo.kl.coef=0.07", "ppo.max_response_tokens=33"]),
        task=cast(Any, SimpleNamespace(grade=lambda prompt, text: {"gold": int(text.split()[0]) / 10})),
        tools=cast(Any, SimpleNamespace(decode=lambda ids: " ".join(map(str, ids.tolist())))),
        prompts=cast(Any, prompts),
        heldout=HELDOUT,
    )


def evaluation(step: int, **first_tokens: int) -> dict[str, Any]:
    responses = [{"prompt_id": name, "token_ids": [token, 1]} for name, token in first_tokens.items()]
    return {"step": step, "sampled_tokens": 100 * step, "mean_score": 0.5, "responses": responses}


def test_a_point_is_the_mean_grade_of_the_answers_whatever_their_order() -> None:
    expected = Point(step=5, sampled_tokens=500, gold=pytest.approx(0.6), score=0.5)
    assert material().point(evaluation(5, b=8, a=4)) == expected


@pytest.mark.parametrize("answers", [{"a": 4}, {"a": 4, "b": 4, "c": 4}])
def test_every_heldout_prompt_is_answered_once(answers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"step 5 answers {len(answers)} prompts, not 2"):
        material().point(evaluation(5, **answers))


def test_the_probe_is_given_the_prompts_as_tokens() -> None:
    assert [json.loads(line) for line in material().lines().splitlines()] == [
        {"split": "train", "prompt_id": "t", "token_ids": [5, 6]},
        {"split": "heldout", "prompt_id": "a", "token_ids": [7]},
        {"split": "heldout", "prompt_id": "b", "token_ids": [7]},
    ]


def test_trl_is_told_what_the_run_says_except_for_its_own_learning_rate() -> None:
    told = settings(material().config, "rloo")
    assert (told["kl-coef"], told["max-tokens"], told["epochs"], told["minibatches"]) == (0.07, 33, 2, 2)
    assert (told["group-size"], settings(material().config, "ppo")["group-size"]) == (4, 1)
    assert told["learning-rate"] == learning_trl.LEARNING_RATES["rloo"]
    assert settings(material().config, "rloo", 2e-4)["learning-rate"] == 2e-4


def test_a_curve_is_trained_once_for_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def probe(algorithm: str, given: dict[str, Any], environments: Path) -> None:
        asked.append(given["learning-rate"])
        Path(given["out"]).write_text(json.dumps(evaluation(0, a=2, b=4)) + "\n")

    monkeypatch.setattr(Material, "of", classmethod(lambda cls, run, responses: material()))
    monkeypatch.setattr(learning_trl, "probe", probe)
    (tmp_path / "reward_model").mkdir()
    (tmp_path / "reward_model" / "artefact.json").write_text('{"key": "k1"}')

    def curve(learning_rate: float) -> list[Point]:
        given: dict[str, Any] = {"algorithm": "grpo", "run": tmp_path, "out": tmp_path / "curve.jsonl", "seed": 0}
        sizes = {"steps": 30, "rollouts": 128, "eval_every": 5, "eval_responses": 1}
        return trl_curve(**given, **sizes, environments=tmp_path, learning_rate=learning_rate)

    assert curve(1e-3) == curve(1e-3) == [Point(step=0, sampled_tokens=0, gold=pytest.approx(0.3), score=0.5)]
    assert asked == [1e-3]
    curve(1e-4)
    (tmp_path / "reward_model" / "artefact.json").write_text('{"key": "k2"}')
    curve(1e-4)
    assert asked == [1e-3, 1e-4, 1e-4]
