"""Bradley-Terry training on real engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.engines.scoring import RewardModelEngine
from rlhf_ray.rewards.heads import Heads, Scale, checkpoint_settings
from rlhf_ray.stages.reward_model import RewardModelSpec
from rlhf_ray.stages.work import TokenizedRanking
from tests import textbook, tiny, trainers
from tests.ranks import Ranks, ranks
from tests.trainers import SupervisedCase, largest_difference, means

pytestmark = pytest.mark.integration

# Measured over ZeRO 0 to 3 and 1 or 2 ranks: 1e-6 after 3 steps at a learning rate of 3e-3.
TOLERANCE = 1e-5


def ranking(index: int, seed: int) -> TokenizedRanking:
    """Two to four responses, some of them tied; every second ranking has soft labels."""
    sequences = tiny.sequences(2 + index % 3, seed=seed)
    places = [(7 * index + 3 * i) % 4 for i in range(len(sequences))]
    pairs = [(i, j) for i, a in enumerate(places) for j, b in enumerate(places) if a < b]
    gaps = [float(places[j] - places[i]) for i, j in pairs]
    unsure = tuple(1 - 0.4 * i / len(pairs) for i in range(len(pairs))) if index % 2 else ()
    return TokenizedRanking(index, tuple(sequences), tuple(pairs), tuple(gaps), unsure)


def rankings(count: int, seed: int) -> list[TokenizedRanking]:
    return [ranking(index, 100 * seed + index) for index in range(count)]


def spec(path: str, **training: object) -> RewardModelSpec:
    return RewardModelSpec(
        model_path=path,
        model=ModelConfig(),
        training=TrainingConfig(max_tokens_per_micro_batch=1, **training),  # type: ignore[arg-type]
        optimizer=trainers.OPTIMIZER,
        centering=0.01,
        margin=0.3,
        num_steps=4,
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> SupervisedCase:
    path = tiny.saved(tiny.scalar_model(), tmp_path_factory.mktemp("model"))
    return SupervisedCase(spec(path), [rankings(5, seed=step) for step in range(3)])


@pytest.fixture(scope="module")
def expected(case: SupervisedCase) -> trainers.Weights:
    return textbook.reward_model(case)


def changed(case: SupervisedCase, **training: object) -> SupervisedCase:
    return replace(case, spec=replace(case.spec, training=replace(case.spec.training, **training)))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_split_takes_the_steps_of_a_textbook_loop(
    case: SupervisedCase, expected: trainers.Weights, zero_stage: int, world_size: int
) -> None:
    outcomes = ranks(world_size).run(trainers.supervised_steps, changed(case, zero_stage=zero_stage))
    assert largest_difference(outcomes[0].policy, expected) < TOLERANCE


@pytest.mark.parametrize("max_tokens", [150, 100_000])
def test_the_size_of_micro_batches_changes_no_step(
    case: SupervisedCase, expected: trainers.Weights, one_rank: Ranks, max_tokens: int
) -> None:
    (outcome,) = one_rank.run(trainers.supervised_steps, changed(case, max_tokens_per_micro_batch=max_tokens))
    assert largest_difference(outcome.policy, expected) < TOLERANCE


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 0), (2, 3)])
def test_from_a_language_model_the_head_starts_at_zero_and_learns(
    tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    path = tiny.saved(tiny.causal_model(), tmp_path / "model")
    fresh = replace(
        spec(path, zero_stage=zero_stage),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.0, decay="constant"),
        centering=0.0,
        margin=0.0,
    )
    certain = [replace(each, probabilities=()) for each in rankings(4, seed=1)]
    outcomes = ranks(world_size).run(trainers.supervised_steps, SupervisedCase(fresh, [certain] * 8))
    steps = means(outcomes)
    assert steps[0]["reward_model/loss"] == pytest.approx(np.log(2.0), abs=1e-7)
    assert steps[0]["reward_model/accuracy"] == 0.5
    assert steps[-1]["reward_model/loss"] < 0.35
    assert steps[-1]["reward_model/accuracy"] > 0.9
    assert np.abs(outcomes[0].policy["score.weight"]).max() > 1e-3


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 3)])
def test_a_saved_model_scores_like_the_one_that_was_trained(
    case: SupervisedCase, tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    directory = tmp_path / "saved"
    outcomes = ranks(world_size).run(
        trainers.score_and_save,
        changed(case, zero_stage=zero_stage),
        str(directory),
        {"score_mean": 0.25, "score_std": 2.0},
    )
    scores = dict(pair for outcome in outcomes for pair in outcome)
    assert sorted(scores) == [0, 1, 2, 3, 4]
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    assert (model.config.num_labels, model.config.score_mean, model.config.score_std) == (1, 0.25, 2.0)
    assert model.config.architectures == ["Qwen2ForSequenceClassification"]
    assert sorted(file.suffix for file in directory.iterdir()) == [".json", ".safetensors"]
    served = RewardModelEngine(path=str(directory), model=ModelConfig(), config=ServerConfig(), device="cpu")
    for each in case.batches[0]:
        raw = [textbook.score(model, sequence) for sequence in each.sequences]
        assert [value for (value,) in scores[each.index]] == pytest.approx(raw, abs=1e-5)
        normalised = [(value - 0.25) / 2.0 for value in raw]
        grades = served.grade_sequences(each.sequences)
        assert [graded.score for graded in grades] == pytest.approx(normalised, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ axes
HEADS_TOLERANCE = 2e-4  # measured: 6e-5, where a gradient is next to nothing and Adam divides by it
HEADS = Heads(("helpful", "honest", "harmless"), (1.0, 0.5, 2.0))


def by_axis(case: SupervisedCase) -> list[list[TokenizedRanking]]:
    """The same rankings, in turn of the whole and of an axis."""
    names = ("", *HEADS.axes)
    return [[replace(each, axis=names[i % 4]) for i, each in enumerate(batch)] for batch in case.batches]


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 3)])
def test_an_axis_trains_its_head_and_the_whole_trains_the_weighted_sum(
    case: SupervisedCase, tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    path = tiny.saved(tiny.scalar_model(num_labels=3), tmp_path / "model")
    three = SupervisedCase(replace(spec(path, zero_stage=zero_stage), heads=HEADS), by_axis(case))
    outcomes = ranks(world_size).run(trainers.supervised_steps, three)
    expected = textbook.reward_model(three)
    assert largest_difference(outcomes[0].policy, expected) < HEADS_TOLERANCE
    mistaken = replace(three, spec=replace(three.spec, heads=replace(HEADS, weights=(1.0, 1.0, 2.0))))
    assert largest_difference(textbook.reward_model(mistaken), expected) > 5 * HEADS_TOLERANCE


def test_several_heads_are_saved_with_what_they_are_called_and_served_axis_by_axis(
    case: SupervisedCase, tmp_path: Path, one_rank: Ranks
) -> None:
    path = tiny.saved(tiny.scalar_model(num_labels=3), tmp_path / "model")
    three = SupervisedCase(replace(spec(path), heads=HEADS), by_axis(case))
    scale = Scale.measured(HEADS, np.arange(12.0).reshape(4, 3))
    (outcome,) = one_rank.run(
        trainers.score_and_save, three, str(tmp_path / "saved"), checkpoint_settings(HEADS, scale)
    )
    served = RewardModelEngine(path=str(tmp_path / "saved"), model=ModelConfig(), config=ServerConfig(), device="cpu")
    for index, raw in outcome:
        for row, graded in zip(raw, served.grade_sequences(three.batches[0][index].sequences), strict=True):
            total = sum(weight * value for weight, value in zip(HEADS.weights, row, strict=True))
            assert graded.score == pytest.approx((total - scale.means[""]) / scale.deviations[""], abs=1e-5)
            for axis, value in zip(HEADS.axes, row, strict=True):
                wanted = (value - scale.means[axis]) / scale.deviations[axis]
                assert graded.parts[axis] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 3)])
def test_members_of_an_ensemble_begin_with_heads_that_their_seed_decides(
    tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    path = tiny.saved(tiny.causal_model(), tmp_path / "model")
    heads = []
    for seed in (7, 7, 8):
        member = replace(spec(path, zero_stage=zero_stage), head_seed=seed, heads=HEADS)
        outcomes = ranks(world_size).run(trainers.supervised_steps, SupervisedCase(member, []))
        heads.append(outcomes[0].policy["score.weight"])
    drawn = torch.randn(3, 32, generator=torch.Generator().manual_seed(7)).numpy() / np.sqrt(33)
    assert np.array_equal(heads[0], heads[1])
    assert np.allclose(heads[0], drawn)
    assert not np.allclose(heads[0], heads[2])
