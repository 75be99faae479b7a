"""The frozen models answer like transformers, one sequence at a time, however many share a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.data.collate import response_sequence
from rlhf_ray.engines.scoring import ReferenceEngine, RewardModelEngine
from tests import textbook, tiny

ROLLOUTS = tiny.rollouts(9)


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_reference_logprobs_are_those_of_each_response_alone(tmp_path: Path, max_tokens: int) -> None:
    model = tiny.causal_model()
    config = ServerConfig(max_tokens_per_batch=max_tokens)
    engine = ReferenceEngine(
        path=tiny.saved(model, tmp_path), model=ModelConfig(), config=config, device="cpu", temperature=0.7
    )
    answers = engine.logprobs(ROLLOUTS)
    for rollout, logprobs in zip(ROLLOUTS, answers, strict=True):
        with torch.no_grad():
            whole = tiny.naive_logprobs(model, [*rollout.prompt_ids, *rollout.response_ids], 0.7)
        expected = whole[len(rollout.prompt_ids) :].tolist()
        assert logprobs.dtype == np.float32
        assert logprobs.tolist() == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_scores_are_normalised_by_what_was_saved_with_the_model(tmp_path: Path, max_tokens: int) -> None:
    model = tiny.scalar_model()
    raw = [textbook.score(model, response_sequence(r.prompt_ids, r.response_ids)) for r in ROLLOUTS]
    for directory, mean, std in (("plain", 0.0, 1.0), ("normalised", 0.5, 4.0)):
        if directory == "normalised":
            model.config.score_mean, model.config.score_std = mean, std
        engine = RewardModelEngine(
            path=tiny.saved(model, tmp_path / directory),
            model=ModelConfig(),
            config=ServerConfig(max_tokens_per_batch=max_tokens),
            device="cpu",
        )
        assert list(engine.score(ROLLOUTS)) == pytest.approx([(score - mean) / std for score in raw], abs=2e-6)


def test_no_rollouts_have_no_scores(tmp_path: Path) -> None:
    path = tiny.saved(tiny.scalar_model(), tmp_path)
    engine = RewardModelEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu")
    assert engine.score([]) == ()
