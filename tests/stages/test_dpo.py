"""Preference optimisation on real engines: every loss against a loop over single pairs, at any split into ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.engines.scoring import ReferenceEngine
from rlhf_ray.metrics.registry import require_registered
from rlhf_ray.stages.dpo import DpoSpec
from rlhf_ray.stages.work import ReferencedRanking, TokenizedRanking, mismatch
from tests import textbook, tiny, trainers
from tests.ranks import Ranks, ranks
from tests.trainers import SupervisedCase, largest_difference, means

pytestmark = pytest.mark.integration

# Measured after 3 steps at a learning rate of 3e-3: 1e-5 over all losses, 3e-5 where other sums are rounded otherwise
# (ranks, ZeRO, micro-batches). A wrong weight or a lost pair gives 1e-3 and more, in all weights.
TOLERANCE = 5e-5
SPLIT_TOLERANCE = 2e-4
LOSSES: Mapping[str, DpoConfig] = {
    "dpo": DpoConfig(beta=0.5),
    "dpo, smoothed": DpoConfig(beta=0.5, label_smoothing=0.2),
    "dpo, margin": DpoConfig(beta=0.5, margin=0.4, label_smoothing=0.1),
    "dpo, likelihood": DpoConfig(beta=0.5, likelihood_coef=0.3),
    "robust": DpoConfig(loss="robust", beta=0.5, label_smoothing=0.1),
    "hinge": DpoConfig(loss="hinge", beta=0.5),
    "ipo": DpoConfig(loss="ipo", beta=0.7),
    "ipo, of sums": DpoConfig(loss="ipo", beta=0.7, length_normalised=False),
    "simpo": DpoConfig(loss="simpo", beta=2.0, simpo_margin=0.3),
    "orpo": DpoConfig(loss="orpo", beta=0.4),
    "dpo, soft": DpoConfig(beta=0.5, label_smoothing=0.1),
    "ipo, soft": DpoConfig(loss="ipo", beta=0.7),
    "kto": DpoConfig(loss="kto", beta=0.5, desirable_weight=1.2, undesirable_weight=0.8),
}


def ranking(index: int, seed: int) -> TokenizedRanking:
    """Two to four responses, some of them tied."""
    sequences = tiny.sequences(2 + index % 3, seed=seed)
    places = [(7 * index + 3 * i) % 4 for i in range(len(sequences))]
    pairs = [(i, j) for i, a in enumerate(places) for j, b in enumerate(places) if a < b]
    return TokenizedRanking(index, tuple(sequences), tuple(pairs), tuple(1.0 for _ in pairs))


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved(tiny.causal_model(), tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[list[ReferencedRanking]]:
    """Three batches of five rankings with what a model near the policy says of them."""
    near = tiny.causal_model()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    path = tiny.saved(near, tmp_path_factory.mktemp("models") / "near")
    engine = ReferenceEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu", temperature=1.0)
    made = []
    for step in range(3):
        rankings = [ranking(index, 100 * step + index) for index in range(5)]
        others = [mismatch(one, rankings[i - 1]) for i, one in enumerate(rankings)]
        strange = engine.response_logprobs(others)
        made.append(
            [
                ReferencedRanking(each, engine.response_logprobs(each.sequences), (other,), (logprob,))
                for each, other, logprob in zip(rankings, others, strange, strict=True)
            ]
        )
    return made


def soft(batches: Sequence[Sequence[ReferencedRanking]]) -> list[list[ReferencedRanking]]:
    """The same pairs, each less certain than the one before."""
    return [
        [replace(each, ranking=replace(each.ranking, probabilities=unsure(each.ranking))) for each in batch]
        for batch in batches
    ]


def unsure(ranking: TokenizedRanking) -> tuple[float, ...]:
    return tuple(1 - 0.5 * i / len(ranking.pairs) for i in range(len(ranking.pairs)))


def case_of(
    path: str, batches: Sequence[Sequence[ReferencedRanking]], dpo: DpoConfig, **training: object
) -> SupervisedCase:
    config = TrainingConfig(**({"max_tokens_per_micro_batch": 1} | training))  # type: ignore[arg-type]
    dpo = replace(dpo, optimizer=trainers.OPTIMIZER)
    spec = DpoSpec(model_path=path, model=ModelConfig(), training=config, dpo=dpo, num_steps=4)
    return SupervisedCase(spec, batches)


# ------------------------------------------------------------------------------------------------- the papers, by pairs
def by_pairs(case: SupervisedCase) -> tuple[trainers.Weights, list[float]]:
    """The weights after all batches and each step's loss: one forward a response, one pair after the other."""
    spec = case.spec
    model = AutoModelForCausalLM.from_pretrained(spec.model_path)
    optimizer, losses = textbook.adam(model, spec.dpo.optimizer), []
    for step, batch in enumerate(case.batches):
        loss = kto(model, batch, spec.dpo) if spec.dpo.loss == "kto" else pairwise(model, batch, spec.dpo)
        losses.append(float(loss.detach()))
        textbook.descend(model, optimizer, loss, textbook.linear_rate(spec.dpo.optimizer, step, spec.num_steps))
    return textbook.weights(model), losses


def require_same(found: trainers.Weights, wanted: trainers.Weights, tolerance: float) -> None:
    """Every weight within ``tolerance`` but one, which may be a step away.

    Adam takes a whole step one way or the other where a gradient is 0 but for rounding: 1 weight of 17,600 here, on
    processors that round otherwise than the one on which the tolerances were measured.
    """
    differences = np.sort(np.concatenate([np.abs(found[name] - wanted[name]).ravel() for name in wanted]))
    assert differences[-2] < tolerance
    assert differences[-1] < trainers.OPTIMIZER.learning_rate


def logprob(model: PreTrainedModel, sequence: TokenSequence) -> torch.Tensor:
    return tiny.naive_logprobs(model, sequence.token_ids)[torch.from_numpy(sequence.mask)].sum()


def pairwise(model: PreTrainedModel, batch: Sequence[ReferencedRanking], config: DpoConfig) -> torch.Tensor:
    total = torch.zeros(())
    for each in batch:
        sequences = each.ranking.sequences
        for number, pair in enumerate(each.ranking.pairs):
            policy = [logprob(model, sequences[i]) for i in pair]
            tokens = [int(sequences[i].mask.sum()) for i in pair]
            ratio = [p - each.reference_logprobs[i] for p, i in zip(policy, pair, strict=True)]
            loss = of_pair(config, policy, ratio, tokens)
            if each.ranking.probabilities:
                share = each.ranking.probabilities[number]
                loss = share * loss + (1 - share) * of_pair(config, policy[::-1], ratio[::-1], tokens[::-1])
            total = total + loss / len(each.ranking.pairs)
    return total / len(batch)


def log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return -torch.log1p(torch.exp(-x))


def of_pair(
    config: DpoConfig, policy: list[torch.Tensor], ratio: list[torch.Tensor], tokens: list[int]
) -> torch.Tensor:
    margin, share = config.beta * (ratio[0] - ratio[1]), config.label_smoothing
    mean = [p / n for p, n in zip(policy, tokens, strict=True)]
    if config.loss == "dpo":
        lead = config.margin  # the ranks of these pairs are one apart
        loss = -(1 - share) * log_sigmoid(margin - lead) - share * log_sigmoid(-margin - lead)
        return loss - config.likelihood_coef * mean[0]
    if config.loss == "robust":
        return (share * log_sigmoid(-margin) - (1 - share) * log_sigmoid(margin)) / (1 - 2 * share)
    if config.loss == "hinge":
        return torch.clamp(1 - margin, min=0.0)
    if config.loss == "ipo":
        gap = ratio[0] / tokens[0] - ratio[1] / tokens[1] if config.length_normalised else ratio[0] - ratio[1]
        return (gap - 1 / (2 * config.beta)) ** 2
    if config.loss == "simpo":
        return -log_sigmoid(config.beta * (mean[0] - mean[1]) - config.simpo_margin)
    assert config.loss == "orpo"
    odds = [torch.log(torch.exp(m) / (1 - torch.exp(m))) for m in mean]
    return -mean[0] - config.beta * log_sigmoid(odds[0] - odds[1])


def kto(model: PreTrainedModel, batch: Sequence[ReferencedRanking], config: DpoConfig) -> torch.Tensor:
    with torch.no_grad():
        strange = [float(logprob(model, each.mismatched[0])) - each.mismatched_logprobs[0] for each in batch]
    baseline, found = max(0.0, math.fsum(strange) / len(strange)), []
    for each in batch:
        for row, sequence in enumerate(each.ranking.sequences):
            winners, losers = zip(*each.ranking.pairs, strict=True)
            beats = winners.count(row) - losers.count(row)
            if beats:
                reward = config.beta * (logprob(model, sequence) - each.reference_logprobs[row] - baseline)
                sign, weight = (1, config.desirable_weight) if beats > 0 else (-1, config.undesirable_weight)
                found.append(weight * (1 - torch.sigmoid(sign * reward)))
    return torch.stack(found).mean()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_the_steps_of_a_loop_over_pairs(
    policy_path: str, batches: list[list[ReferencedRanking]], one_rank: Ranks, name: str
) -> None:
    case = case_of(policy_path, soft(batches) if "soft" in name else batches, LOSSES[name])
    weights, losses = by_pairs(case)
    outcomes = one_rank.run(trainers.supervised_steps, case)
    assert [step["dpo/loss"] for step in means(outcomes)] == pytest.approx(losses, rel=1e-4)
    require_same(outcomes[0].policy, weights, TOLERANCE)
    assert largest_difference(weights, textbook.weights(tiny.causal_model())) > 100 * TOLERANCE
    require_registered(means(outcomes)[0])


@pytest.mark.parametrize(
    ("name", "world_size", "zero_stage", "max_tokens"),
    [
        ("dpo", 2, 0, 1),
        ("dpo", 1, 2, 150),
        ("dpo", 2, 3, 1000),
        ("kto", 2, 1, 1),
        ("kto", 2, 3, 150),
        ("orpo", 2, 2, 1),
    ],
)
def test_no_split_changes_a_step(
    policy_path: str,
    batches: list[list[ReferencedRanking]],
    name: str,
    world_size: int,
    zero_stage: int,
    max_tokens: int,
) -> None:
    case = case_of(policy_path, batches, LOSSES[name], zero_stage=zero_stage, max_tokens_per_micro_batch=max_tokens)
    outcomes = ranks(world_size).run(trainers.supervised_steps, case)
    require_same(outcomes[0].policy, by_pairs(case)[0], SPLIT_TOLERANCE)


def test_a_policy_that_is_its_reference_starts_at_the_loss_of_a_coin_and_learns_the_order(
    policy_path: str, one_rank: Ranks
) -> None:
    engine = ReferenceEngine(
        path=policy_path, model=ModelConfig(), config=ServerConfig(), device="cpu", temperature=1.0
    )
    rankings = [ranking(index, index) for index in range(4)]
    batch = [ReferencedRanking(each, engine.response_logprobs(each.sequences)) for each in rankings]
    steps = means(one_rank.run(trainers.supervised_steps, case_of(policy_path, [batch] * 4, DpoConfig(beta=0.5))))
    assert steps[0]["dpo/loss"] == pytest.approx(math.log(2.0), abs=1e-5)
    assert steps[0]["dpo/reward_margin"] == pytest.approx(0.0, abs=1e-4)
    assert steps[-1]["dpo/loss"] < 0.5
    assert steps[-1]["dpo/accuracy"] > 0.9


def test_an_evaluation_has_the_numbers_of_a_step_and_takes_none(
    policy_path: str, batches: list[list[ReferencedRanking]], two_ranks: Ranks
) -> None:
    case = case_of(policy_path, batches, LOSSES["kto"], zero_stage=2)
    evaluated, trained = means(two_ranks.run(trainers.evaluate_then_step, case))
    shared = {name.removeprefix("dpo_heldout/"): value for name, value in evaluated.items()}
    assert shared == pytest.approx({name: trained[f"dpo/{name}"] for name in shared})
    require_registered(evaluated)


def test_a_saved_policy_is_the_one_that_was_trained(
    policy_path: str, batches: list[list[ReferencedRanking]], tmp_path: Path, one_rank: Ranks
) -> None:
    (outcome,) = one_rank.run(
        trainers.step_and_save, case_of(policy_path, batches, LOSSES["dpo"]), str(tmp_path / "saved")
    )
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert largest_difference(textbook.weights(saved), outcome.policy) == 0.0
