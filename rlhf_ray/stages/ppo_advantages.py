"""From rewards to advantages: generalised advantage estimation, or one of the estimators without a critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

import torch
from torch import Tensor

from rlhf_ray.algo.advantages import GroupEstimator, discounted_returns, gae, group_advantages, per_token
from rlhf_ray.algo.masked import masked_sum, mean_and_variance, moments, whiten
from rlhf_ray.algo.rewards import whiten_rewards
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.engines.training import all_reduce_sum
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.stages.ppo_experience import Experience
from rlhf_ray.stages.ppo_plan import PpoWork

Minibatches: TypeAlias = list[list[Experience]]


def with_advantages(minibatches: Minibatches, work: PpoWork, config: PpoConfig, metrics: MetricSums) -> Minibatches:
    """Fill in advantages, and the critic's targets where there is one. Every rank must call it."""
    if config.reward.whiten_rewards:
        minibatches = _whitened_rewards(minibatches)
    if config.advantages == "gae":
        minibatches = _mapped(minibatches, lambda e: _with_gae(e, config))
        _, of_returns = _statistics(minibatches, lambda e: e.returns)
        _, of_errors = _statistics(minibatches, lambda e: e.returns - e.values)
        metrics.add("ppo/explained_variance", 1.0 - float(of_errors) / max(float(of_returns), 1e-8), 1)
    elif config.advantages in ("reinforce_pp", "reinforce_pp_baseline", "remax"):
        minibatches = _mapped(minibatches, lambda e: _with_returns(e, config, work))
    else:
        minibatches = _with_group_advantages(minibatches, config, work)
    mean, variance = _statistics(minibatches, lambda e: e.advantages)
    metrics.add("ppo/advantage_std", float(variance.sqrt()), 1)
    if not config.whitens_advantages:
        return minibatches
    return _mapped(
        minibatches,
        lambda e: replace(e, advantages=whiten(values=e.advantages, mask=e.batch.mask, mean=mean, variance=variance)),
    )


def _whitened_rewards(minibatches: Minibatches) -> Minibatches:
    mean, variance = _statistics(minibatches, lambda e: e.rewards)
    return _mapped(
        minibatches,
        lambda e: replace(
            e, rewards=whiten_rewards(rewards=e.rewards, response_mask=e.batch.mask, mean=mean, variance=variance)
        ),
    )


def _with_gae(experience: Experience, config: PpoConfig) -> Experience:
    """Decoupled where ``critic_lam`` differs from ``lam``: the critic's targets take a lambda of their own."""

    def estimate(lam: float) -> tuple[Tensor, Tensor]:
        return gae(
            rewards=experience.rewards,
            values=experience.values,
            response_mask=experience.batch.mask,
            gamma=config.gamma,
            lam=lam,
        )

    advantages, returns = estimate(config.lam)
    if config.critic_lam is not None:
        _, returns = estimate(config.critic_lam)
    return replace(experience, advantages=advantages, returns=returns)


def _with_returns(experience: Experience, config: PpoConfig, work: PpoWork) -> Experience:
    """The discounted reward from each token on; ReMax takes the greedy response's score away."""
    mask = experience.batch.mask
    returns = discounted_returns(rewards=experience.rewards, response_mask=mask, gamma=config.gamma)
    if config.advantages == "remax":
        baselines = [work.baselines[order] for order in experience.orders] or [0.0]
        returns = returns - per_token(advantages=torch.tensor(baselines).to(returns), response_mask=mask)
    return replace(experience, advantages=returns)


def _with_group_advantages(minibatches: Minibatches, config: PpoConfig, work: PpoWork) -> Minibatches:
    """Every response against the others to its prompt, on whatever ranks they are trained."""
    device = minibatches[0][0].rewards.device
    totals = torch.zeros(len(work.groups), dtype=torch.float64, device=device)
    for experience in (e for minibatch in minibatches for e in minibatch):
        if experience.orders:
            places = torch.tensor([work.positions[order] for order in experience.orders], device=device)
            totals[places] = masked_sum(values=experience.rewards.double(), mask=experience.batch.mask, dim=-1)
    advantages = group_advantages(
        totals=all_reduce_sum(totals).cpu(),  # each place is filled by one rank: the sum is exact
        groups=torch.tensor(work.groups),
        estimator=cast(GroupEstimator, config.advantages),
        lengths=torch.tensor(work.lengths),
    )

    def filled(experience: Experience) -> Experience:
        own = [float(advantages[work.positions[order]]) for order in experience.orders] or [0.0]
        values = torch.tensor(own).to(experience.rewards)
        return replace(experience, advantages=per_token(advantages=values, response_mask=experience.batch.mask))

    return _mapped(minibatches, filled)


def _statistics(minibatches: Minibatches, what: Callable[[Experience], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance over the sampled tokens of the step, on all ranks."""
    own = [moments(values=what(e), mask=e.batch.mask) for minibatch in minibatches for e in minibatch]
    return mean_and_variance(all_reduce_sum(torch.stack(own).sum(dim=0)))


def _mapped(minibatches: Sequence[Sequence[Experience]], change: Callable[[Experience], Experience]) -> Minibatches:
    return [[change(e) for e in minibatch] for minibatch in minibatches]
