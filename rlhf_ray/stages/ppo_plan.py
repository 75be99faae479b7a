"""Which rank trains which rollouts, in which minibatch and micro-batch: arithmetic on summaries, no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.data.batching import MinibatchPlan, plan_minibatches
from rlhf_ray.records import RolloutSummary
from rlhf_ray.stages.work import SequenceWork


@dataclass(frozen=True)
class PpoMinibatch:
    """One rank's share of one minibatch. Rows are named by ``order``; an empty micro-batch keeps the ranks in step."""

    micro_batches: tuple[tuple[int, ...], ...]
    num_tokens: int  # sampled tokens of the minibatch on all ranks
    ptx: SequenceWork | None  # demonstrations mixed in (PPO-ptx), or none


@dataclass(frozen=True)
class PpoWork:
    """One rank's share of a PPO step. The rollouts themselves travel beside it."""

    step: int
    kl_coef: float
    train_policy: bool  # False while only the critic warms up
    minibatches: tuple[PpoMinibatch, ...]
    epochs: tuple[tuple[int, ...], ...]  # order of the minibatches in each epoch
    scores: dict[int, float]  # by order, this rank's rollouts only


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
) -> tuple[PpoWork, ...]:
    """Plan one step: a work list for each rank.

    Minibatches are drawn from the whole step first, so that their composition does not depend on the number of ranks.
    ``ptx[m][r]`` is rank r's share of the demonstrations in minibatch m.
    """
    plan = plan_minibatches(
        lengths=[s.length for s in summaries],
        num_minibatches=config.num_minibatches,
        num_ranks=num_ranks,
        max_tokens=max_tokens,
        seed=seed + step,
    )
    generator = np.random.default_rng([seed, step])
    epochs = [generator.permutation(config.num_minibatches).tolist() for _ in range(config.num_epochs)]
    by_order = {s.order: score for s, score in zip(summaries, scores, strict=True)}
    works = []
    for rank in range(num_ranks):
        minibatches = tuple(
            _rank_share(minibatch, rank, summaries, ptx[index][rank] if ptx else None)
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
                scores={order: by_order[order] for order in own},
            )
        )
    return tuple(works)


def _rank_share(
    minibatch: MinibatchPlan, rank: int, summaries: Sequence[RolloutSummary], ptx: SequenceWork | None
) -> PpoMinibatch:
    own = minibatch.ranks[rank].micro_batches
    return PpoMinibatch(
        micro_batches=tuple(tuple(summaries[row].order for row in rows) for rows in own),
        num_tokens=sum(summaries[row].response_length for row in minibatch.rows),
        ptx=ptx,
    )
