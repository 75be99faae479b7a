"""Stage ``reward_model``: a scalar model learns people's rankings and is measured on rankings that it never saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.metrics.preferences import (
    ScoredPair,
    accuracy,
    accuracy_rows,
    calibration,
    length_rule_accuracy,
    scored_pairs,
)
from rlhf_ray.metrics.progress import progress
from rlhf_ray.metrics.sinks import open_metric_log
from rlhf_ray.pipeline.comparison import Comparisons, tokenized_comparisons
from rlhf_ray.pipeline.context import Context, Trainer, quiet, ranks_of
from rlhf_ray.pipeline.door import checkpoint_directory
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.stages.reward_model import RewardModelSpec
from rlhf_ray.stages.work import TokenizedRanking, plan_rankings

SCORED_FOR_NORMALISATION = 512  # rankings


async def train_reward_model(context: Context) -> dict[str, Any]:
    """Write ``reward_model/model``, a one-label sequence classifier, and what it gets right on held-out rankings."""
    config, tools = context.config, TextTools.of(context)
    comparisons = tokenized_comparisons(context, tools)
    train = comparisons.train
    batch_size = min(config.reward_model.batch_size, len(train))
    num_steps = math.ceil(config.reward_model.num_epochs * len(train) / batch_size)
    spec = RewardModelSpec(
        model_path=_initial_weights(context),
        model=config.model,
        training=config.training,
        optimizer=config.reward_model.optimizer,
        centering=config.reward_model.centering,
        margin=config.reward_model.margin,
        num_steps=num_steps,
    )
    directory = context.directory("reward_model") / "model"
    async with context.fleet.scope() as scope:
        trainer = await scope.trainer(spec)
        sampler = ResumableSampler(len(train), batch_size, config.seed)
        with (
            open_metric_log(context.directory("reward_model"), quiet(config.logging), run_name="reward_model") as log,
            progress("Reward model", num_steps, "step") as bar,
        ):
            for step in range(1, num_steps + 1):
                works = plan_rankings([train[i] for i in sampler.next_batch()], **ranks_of(config))
                metrics = (await trainer.update(works)).means()
                if step % config.reward_model.eval_every == 0:
                    metrics |= _heldout_metrics(await _judge(context, trainer, comparisons))
                log.log(step, metrics)
                bar.advance()
                bar.note(f"loss {metrics['reward_model/loss']:.3f}, accuracy {metrics['reward_model/accuracy']:.3f}")
        pairs = await _judge(context, trainer, comparisons)
        mean, std = await _normalisation(context, trainer, train)
        await trainer.save(str(directory), mean, std)
    tools.tokenizer.save_pretrained(directory)
    return {
        "model": str(directory),
        "steps": num_steps,
        "rankings": len(train),
        "left_out": comparisons.left_out,
        "heldout_pairs": len(pairs),
        "accuracy": accuracy(pairs),
        "length_rule_accuracy": length_rule_accuracy(pairs),
        "score_mean": mean,
        "score_std": std,
        "accuracy_rows": [asdict(row) for row in accuracy_rows(pairs)],
        "calibration": [asdict(row) for row in calibration(pairs)],
    }


def own_reward_model(context: Context) -> str:
    """The checkpoint of the run's own reward model; empty where no source of rewards asks for one."""
    return str(context.results("reward_model")["model"]) if context.config.trains_reward_model else ""


def _initial_weights(context: Context) -> str:
    source = context.config.reward_model.initialise_from
    if source == "sft":
        return str(policy_path(context))
    if source == "base":
        return str(context.results("model")["weights"])
    return str(checkpoint_directory(source, field="reward_model.initialise_from"))


async def _scores(
    context: Context, trainer: Trainer, rankings: Sequence[TokenizedRanking]
) -> Mapping[int, tuple[float, ...]]:
    return await trainer.score(plan_rankings(rankings, **ranks_of(context.config)))


async def _judge(context: Context, trainer: Trainer, comparisons: Comparisons) -> list[ScoredPair]:
    """What the model says of the held-out pairs."""
    scores = await _scores(context, trainer, comparisons.heldout)
    lengths = {t.index: tuple(int(s.mask.sum()) for s in t.sequences) for t in comparisons.heldout}
    return scored_pairs(comparisons.heldout_rankings, scores, lengths)


def _heldout_metrics(pairs: Sequence[ScoredPair]) -> dict[str, float]:
    return {
        "reward_model/heldout_accuracy": accuracy(pairs),
        "reward_model/heldout_loss": float(np.mean([p.loss for p in pairs])),
    }


async def _normalisation(
    context: Context, trainer: Trainer, rankings: Sequence[TokenizedRanking]
) -> tuple[float, float]:
    """Mean and deviation of raw scores on training responses: normalised scores then have mean 0 and deviation 1."""
    chosen = rankings[:: max(1, len(rankings) // SCORED_FOR_NORMALISATION)]
    scores = np.array([s for row in (await _scores(context, trainer, chosen)).values() for s in row])
    return float(scores.mean()), float(max(scores.std(), 1e-6))
