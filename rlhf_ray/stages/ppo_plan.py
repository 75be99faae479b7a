"""Which rank trains which rollouts, in which minibatch and micro-batch: arithmetic on summaries, no tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch

from rlhf_ray.algo.advantages import group_centred
from rlhf_ray.algo.corrections import effective_sample_size
from rlhf_ray.algo.rewards import clip_scores, overlong_penalty, penalise_missing_eos
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.data.batching import MinibatchPlan, plan_minibatches
from rlhf_ray.records import RolloutSummary
from rlhf_ray.stages.work import SequenceWork

StepRewards: TypeAlias = tuple[tuple[int, float], ...]  # (index into the response, reward)


@dataclass(frozen=True)
class PpoMinibatch:
    """One rank's share of one minibatch. Rows are named by ``order``; an empty micro-batch keeps the ranks in step."""

    micro_batches: tuple[tuple[int, ...], ...]
    num_tokens: int  # sampled tokens of the minibatch on all ranks
    num_sequences: int  # its responses of at least one token, on all ranks
    ptx: SequenceWork | None  # demonstrations mixed in (PPO-ptx), or none


@dataclass(frozen=True)
class PpoWork:
    """One rank's share of a PPO step. The rollouts themselves travel beside it.

    ``positions``, ``groups`` and ``lengths`` speak of all rollouts of the step, so that every rank can compare the
    responses to one prompt wherever they are trained; the rest is this rank's own.
    """

    step: int
    kl_coef: float
    train_policy: bool  # False while only the critic warms up
    minibatches: tuple[PpoMinibatch, ...]
    epochs: tuple[tuple[int, ...], ...]  # order of the minibatches in each epoch
    positions: Mapping[int, int]  # order -> place among the step's rollouts
    groups: tuple[int, ...]  # by place: the number of its prompt
    lengths: tuple[int, ...]  # by place: tokens of the response
    scores: Mapping[int, float]  # by order, clipped and with its penalties
    baselines: Mapping[int, float] = field(default_factory=dict)  # by order: the greedy response's score (ReMax)
    step_rewards: Mapping[int, StepRewards] = field(default_factory=dict)  # by order, where there are any


def plan_ppo(
    *,
    summaries: Sequence[RolloutSummary],
    scores: Sequence[float],
    config: PpoConfig,
    num_ranks: int,
    max_tokens: int,
    step: int,
    kl_coef: float,
    seed: int,
    ptx: Sequence[Sequence[SequenceWork]] = (),
    baselines: Mapping[str, float] | None = None,
    step_rewards: Mapping[int, StepRewards] | None = None,
) -> tuple[PpoWork, ...]:
    """Plan one step: a work list for each rank.

    Minibatches are drawn from the whole step first, so that their composition does not depend on the number of ranks.
    ``ptx[m][r]`` is rank r's share of the demonstrations in minibatch m; ``baselines`` are shaped scores by prompt.
    """
    lengths = tuple(s.response_length for s in summaries)
    plan = plan_minibatches(
        lengths=[s.prompt_length + length for s, length in zip(summaries, lengths, strict=True)],
        num_minibatches=config.num_minibatches,
        num_ranks=num_ranks,
        max_tokens=max_tokens,
        seed=seed + step,
    )
    generator = np.random.default_rng([seed, step])
    epochs = [generator.permutation(config.num_minibatches).tolist() for _ in range(config.num_epochs)]
    groups = group_numbers(summaries)
    orders = [s.order for s in summaries]
    shaped = dict(zip(orders, shaped_scores(summaries, scores, config, groups), strict=True))
    prompts = {s.order: s.prompt_id for s in summaries} if baselines else {}
    positions = {order: place for place, order in enumerate(orders)}
    sizes = [_size(minibatch, lengths) for minibatch in plan.minibatches]
    works = []
    for rank in range(num_ranks):
        minibatches = tuple(
            _rank_share(minibatch, rank, orders, sizes[index], ptx[index][rank] if ptx else None)
            for index, minibatch in enumerate(plan.minibatches)
        )
        own = [order for minibatch in minibatches for micro in minibatch.micro_batches for order in micro]
        works.append(
            PpoWork(
                step=step,
                kl_coef=kl_coef,
                train_policy=step > config.critic_warmup_steps,
                minibatches=minibatches,
                epochs=tuple(tuple(epoch) for epoch in epochs),
                positions=positions,
                groups=groups,
                lengths=lengths,
                scores={order: shaped[order] for order in own},
                baselines={order: baselines[prompts[order]] for order in own} if baselines else {},
                step_rewards={order: step_rewards[order] for order in own if order in step_rewards}
                if step_rewards
                else {},
            )
        )
    return tuple(works)


def group_numbers(summaries: Sequence[RolloutSummary]) -> tuple[int, ...]:
    """A number for each summary's prompt, counted from 0 in the order in which prompts first stand there."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(s.prompt_id, len(numbers)) for s in summaries)


def shaped_scores(
    summaries: Sequence[RolloutSummary], scores: Sequence[float], config: PpoConfig, groups: Sequence[int] = ()
) -> list[float]:
    """Scores clipped, with the penalties for responses that are cut off or too long.

    REINFORCE++-baseline then takes each group's mean away; for other estimators ``groups`` is not needed.
    """
    reward, shaped = config.reward, torch.tensor(scores, dtype=torch.float64)
    if reward.score_clip:
        shaped = clip_scores(scores=shaped, limit=reward.score_clip)
    finished = torch.tensor([s.finish_reason == "stop" for s in summaries], dtype=torch.bool)
    shaped = penalise_missing_eos(scores=shaped, finished=finished, penalty=reward.missing_eos_penalty)
    if reward.overlong_penalty:
        shaped = shaped - overlong_penalty(
            lengths=torch.tensor([s.response_length for s in summaries]),
            max_tokens=config.max_response_tokens,
            overlong_tokens=reward.overlong_tokens,
            penalty=reward.overlong_penalty,
        )
    if config.advantages == "reinforce_pp_baseline" and len(groups):
        shaped = group_centred(totals=shaped, groups=torch.tensor(groups))
    found: list[float] = shaped.tolist()
    return found


def with_sample_size(metrics: Mapping[str, float]) -> dict[str, float]:
    """A step's metrics with the effective sample size in place of the mean square that it is made of."""
    squares = metrics["ppo/rollout_weights_squared"]
    size = effective_sample_size(total=metrics["ppo/rollout_weight_mean"], squares=squares, count=1.0)
    rest = {name: value for name, value in metrics.items() if name != "ppo/rollout_weights_squared"}
    return {**rest, "ppo/effective_sample_size": size}


def _size(minibatch: MinibatchPlan, lengths: Sequence[int]) -> tuple[int, int]:
    """A minibatch's sampled tokens, and its responses of at least one token, on all ranks."""
    own = [lengths[row] for rank in minibatch.ranks for rows in rank.micro_batches for row in rows]
    return sum(own), sum(length > 0 for length in own)


def _rank_share(
    minibatch: MinibatchPlan,
    rank: int,
    orders: Sequence[int],
    size: tuple[int, int],
    ptx: SequenceWork | None,
) -> PpoMinibatch:
    own = minibatch.ranks[rank].micro_batches
    return PpoMinibatch(
        micro_batches=tuple(tuple(map(orders.__getitem__, rows)) for rows in own),
        num_tokens=size[0],
        num_sequences=size[1],
        ptx=ptx,
    )
