"""Process reward models on real engines: step labels against a plain loop, at any split, and a rule that is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.data.collate import response_sequence
from rlhf_ray.engines.scoring import ProcessRewardEngine
from rlhf_ray.metrics.registry import require_registered
from rlhf_ray.metrics.steps import labelled_steps, step_rows
from rlhf_ray.records import Rollout
from rlhf_ray.stages.process_reward import ProcessRewardSpec
from rlhf_ray.stages.work import LabelledSteps
from tests import textbook, tiny, trainers
from tests.ranks import Ranks, ranks
from tests.trainers import SupervisedCase, largest_difference, means

pytestmark = pytest.mark.integration

TOLERANCE = 1e-4
SEPARATOR = 5
BAD = 9  # in the toy, a step with this token in it is bad


def labelled(index: int, seed: int) -> LabelledSteps:
    """One to four steps of one to four tokens, each ended by the separator; bad where ``BAD`` is among the tokens."""
    generator = np.random.default_rng(seed)
    ids, ends, labels = [2, 3], [], []
    for _ in range(int(generator.integers(1, 5))):
        step = generator.integers(10, 20, int(generator.integers(1, 5))).tolist()
        good = bool(generator.random() < 0.5)
        if not good:
            step[int(generator.integers(len(step)))] = BAD
        ids += [*step, SEPARATOR]
        ends.append(len(ids) - 1)
        labels.append(good)
    mask = np.zeros(len(ids), dtype=np.bool_)
    mask[ends] = True
    sequence = replace(response_sequence(np.array(ids, dtype=np.int32), np.zeros(0, dtype=np.int32)), mask=mask)
    return LabelledSteps(index, sequence, tuple(labels))


def batch(count: int, seed: int) -> list[LabelledSteps]:
    return [labelled(index, 1000 * seed + index) for index in range(count)]


def spec(
    path: str, num_steps: int = 4, optimizer: OptimizerConfig = trainers.OPTIMIZER, **training: object
) -> ProcessRewardSpec:
    config = TrainingConfig(**({"max_tokens_per_micro_batch": 1} | training))  # type: ignore[arg-type]
    return ProcessRewardSpec(path, ModelConfig(), config, optimizer, num_steps)


def by_steps(case: SupervisedCase) -> tuple[trainers.Weights, list[float]]:
    """The weights after all batches and each batch's loss: one forward a prefix, one step after the other."""
    model = AutoModelForSequenceClassification.from_pretrained(case.spec.model_path)
    optimizer, losses = textbook.adam(model, case.spec.optimizer), []
    for number, responses in enumerate(case.batches):
        found = []
        for response in responses:
            ids = response.sequence.token_ids
            for end, good in zip(np.flatnonzero(response.sequence.mask), response.labels, strict=True):
                logit = model(input_ids=torch.tensor([ids[: end + 1].tolist()])).logits[0, 0]
                found.append(torch.log1p(torch.exp(-logit if good else logit)))
        loss = torch.stack(found).mean()
        losses.append(float(loss.detach()))
        textbook.descend(model, optimizer, loss, textbook.linear_rate(case.spec.optimizer, number, case.spec.num_steps))
    return textbook.weights(model), losses


@pytest.mark.parametrize(("world_size", "zero_stage", "max_tokens"), [(1, 0, 1), (2, 0, 60), (2, 3, 1)])
def test_every_split_takes_the_steps_of_a_loop_over_labelled_steps(
    tmp_path: Path, world_size: int, zero_stage: int, max_tokens: int
) -> None:
    path = tiny.saved(tiny.scalar_model(), tmp_path)
    training = {"zero_stage": zero_stage, "max_tokens_per_micro_batch": max_tokens}
    case = SupervisedCase(spec(path, **training), [batch(5, seed) for seed in range(3)])
    weights, losses = by_steps(case)
    outcomes = ranks(world_size).run(trainers.supervised_steps, case)
    assert [step["reward_model/loss"] for step in means(outcomes)] == pytest.approx(losses, rel=1e-4)
    assert largest_difference(outcomes[0].policy, weights) < TOLERANCE
    assert largest_difference(weights, textbook.weights(tiny.scalar_model())) > 20 * TOLERANCE
    require_registered(means(outcomes)[0])


def test_it_learns_which_steps_are_good_and_serves_it_at_the_tokens_where_steps_end(
    tmp_path: Path, one_rank: Ranks
) -> None:
    path = tiny.saved(tiny.causal_model(), tmp_path / "model")
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup_fraction=0.0, decay="constant")
    batches: Sequence[Sequence[LabelledSteps]] = [batch(32, seed) for seed in range(60)]
    fresh = spec(path, 60, optimizer, max_tokens_per_micro_batch=100_000)
    heldout = batch(100, seed=999)
    (scores,) = one_rank.run(
        trainers.learn_score_and_save, SupervisedCase(fresh, batches), heldout, str(tmp_path / "saved")
    )
    steps = labelled_steps(heldout, dict(scores))
    whole, rule, *_ = step_rows(steps)
    assert whole.correct / whole.total > 0.95
    assert rule.correct / rule.total < 0.6

    engine = ProcessRewardEngine(
        path=str(tmp_path / "saved"), model=ModelConfig(), config=ServerConfig(), device="cpu", separator=(SEPARATOR,)
    )
    for response in heldout[:10]:
        graded = engine.grade([rollout(response)])[0]
        served = [value for _, value in graded.step_rewards] + [graded.score]
        assert served == pytest.approx([(raw - 0.5) / 2.0 for raw in dict(scores)[response.index]], abs=1e-4)


def rollout(response: LabelledSteps) -> Rollout:
    """The response of a labelled sequence, whose prompt has two tokens, as if it had been sampled."""
    prompt, ids = response.sequence.token_ids[:2], response.sequence.token_ids[2:]
    zeros = np.zeros(len(ids), dtype=np.float32)
    return Rollout("r", "p", 0, prompt, ids, zeros, zeros.astype(np.int32), "stop", 0)
