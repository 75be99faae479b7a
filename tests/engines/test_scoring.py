"""The frozen models answer like transformers, one sequence at a time, however many share a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.data.collate import response_sequence
from rlhf_ray.engines.scoring import NO_STEPS, ProcessRewardEngine, ReferenceEngine, RewardModelEngine, step_ends
from rlhf_ray.errors import ConfigError
from rlhf_ray.records import Graded, Rollout
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
        assert [graded.score for graded in engine.grade(ROLLOUTS)] == pytest.approx(
            [(score - mean) / std for score in raw], abs=2e-6
        )


@pytest.mark.parametrize("max_tokens", [1, 60, 1000])
def test_distributions_are_those_at_each_response_token_of_the_response_alone(tmp_path: Path, max_tokens: int) -> None:
    model = tiny.causal_model()
    engine = ReferenceEngine(
        path=tiny.saved(model, tmp_path),
        model=ModelConfig(),
        config=ServerConfig(max_tokens_per_batch=max_tokens),
        device="cpu",
        temperature=0.7,
    )
    rollouts = tiny.rollouts(5)
    for rollout, found in zip(rollouts, engine.distributions(rollouts), strict=True):
        ids = torch.tensor([[*map(int, rollout.prompt_ids), *map(int, rollout.response_ids)]])
        with torch.no_grad():
            whole = (model(input_ids=ids).logits[0].float() / 0.7).log_softmax(-1).numpy()
        assert found.shape == (len(rollout.response_ids), tiny.VOCABULARY)
        np.testing.assert_allclose(found, whole[len(rollout.prompt_ids) - 1 : -1], atol=1e-5)


def test_whole_distributions_of_a_large_vocabulary_are_refused(tmp_path: Path) -> None:
    path = tiny.saved(tiny.causal_model(vocab_size=8193, hidden_size=8), tmp_path)
    engine = ReferenceEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu", temperature=1.0)
    with pytest.raises(ConfigError, match=r"^ppo\.kl\.estimator \('exact'\) sends .* has 8193 tokens, more than 8192"):
        engine.distributions(tiny.rollouts(2))


def test_no_rollouts_have_no_scores(tmp_path: Path) -> None:
    path = tiny.saved(tiny.scalar_model(), tmp_path)
    engine = RewardModelEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu")
    assert engine.grade([]) == ()


# ------------------------------------------------------------------------------------------------------ process rewards
SEPARATOR = (5, 6)


def with_steps(rollout: Rollout, *steps: int) -> Rollout:
    """The same prompt, answered in steps of so many tokens, each but the last followed by the separator."""
    ids: list[int] = []
    for number, length in enumerate(steps):
        ids += [10 + number] * length + (list(SEPARATOR) if number < len(steps) - 1 else [])
    return replace(rollout, response_ids=np.array(ids, dtype=np.int32))


@pytest.mark.parametrize(
    ("ids", "separator", "ends"),
    [
        ([1, 2, 3], (9,), (2,)),
        ([1, 9, 3, 9, 4], (9,), (1, 3, 4)),
        ([1, 9], (9,), (1,)),
        ([9, 9], (9,), (0, 1)),
        ([9, 9, 9, 1], (9, 9), (1, 3)),
        ([1, 9, 8, 9, 9, 8], (9, 8), (2, 5)),
        ([9], (9, 8), (0,)),
        ([], (9,), ()),
    ],
)
def test_a_step_ends_with_its_separator_and_the_last_with_the_response(
    ids: list[int], separator: tuple[int, ...], ends: tuple[int, ...]
) -> None:
    assert step_ends(np.array(ids, dtype=np.int32), separator) == ends


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_every_step_is_scored_as_if_the_response_ended_there(tmp_path: Path, max_tokens: int) -> None:
    model = tiny.scalar_model()
    model.config.score_mean, model.config.score_std = 0.5, 4.0
    shapes = [(2,), (1, 1), (3, 2, 1), (1, 0, 2), (2, 2, 2, 0)]
    rollouts = [with_steps(rollout, *shape) for rollout, shape in zip(ROLLOUTS, shapes, strict=False)]
    engine = ProcessRewardEngine(
        path=tiny.saved(model, tmp_path),
        model=ModelConfig(),
        config=ServerConfig(max_tokens_per_batch=max_tokens),
        device="cpu",
        separator=SEPARATOR,
    )
    answers = engine.grade(rollouts)
    for rollout, graded in zip(rollouts, answers, strict=True):
        ids = rollout.response_ids.tolist()
        ends = [t for t in range(1, len(ids)) if (ids[t - 1], ids[t]) == SEPARATOR]
        ends += [] if ends and ends[-1] == len(ids) - 1 else [len(ids) - 1]
        expected = {}
        for end in ends:  # one forward a step, on nothing but what came before
            whole = torch.tensor([[*rollout.prompt_ids.tolist(), *ids[: end + 1]]])
            with torch.no_grad():
                expected[end] = (float(model(input_ids=whole).logits[0, 0]) - 0.5) / 4.0
        assert dict(graded.step_rewards) | {len(ids) - 1: graded.score} == pytest.approx(expected, abs=2e-6)
        assert len(graded.step_rewards) == len(ends) - 1


def test_without_a_separator_in_it_a_response_has_the_reward_models_score(tmp_path: Path) -> None:
    path = tiny.saved(tiny.scalar_model(), tmp_path)
    whole = RewardModelEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu")
    steps = ProcessRewardEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu", separator=(1,))
    answers = steps.grade(ROLLOUTS)
    assert [graded.step_rewards for graded in answers] == [()] * len(ROLLOUTS)
    assert [graded.score for graded in answers] == pytest.approx(
        [graded.score for graded in whole.grade(ROLLOUTS)], abs=2e-6
    )


def test_a_response_without_tokens_has_no_steps_and_harms_no_neighbour(tmp_path: Path) -> None:
    path = tiny.saved(tiny.scalar_model(), tmp_path)
    engine = ProcessRewardEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu", separator=(1,))
    empty = replace(ROLLOUTS[0], response_ids=np.array([], dtype=np.int32))
    first, second = engine.grade([empty, ROLLOUTS[1]])
    assert first == NO_STEPS == Graded(None, failed="the response has no tokens")
    assert second.score == pytest.approx(engine.grade([ROLLOUTS[1]])[0].score, abs=2e-6)
    assert engine.grade([]) == ()
