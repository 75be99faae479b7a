"""The same training, written again without any of our engines: one process, plain torch, the whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_ray.config.training import OptimizerConfig
from rlhf_ray.data.collate import TokenSequence
from tests import tiny
from tests.trainers import PpoCase, SupervisedCase, Weights


def weights(model: PreTrainedModel) -> Weights:
    """A model's weights by name, tied ones once."""
    return {name: parameter.detach().float().numpy().copy() for name, parameter in model.named_parameters()}


def adam(model: PreTrainedModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=betas, eps=config.epsilon, weight_decay=config.weight_decay
    )


def descend(model: PreTrainedModel, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def linear_rate(config: OptimizerConfig, update: int, num_updates: int) -> float:
    return config.learning_rate * (config.floor + (1 - config.floor) * (1 - update / num_updates))


def ppo(case: PpoCase, *, steps: Sequence[int]) -> tuple[Weights, Weights]:
    """PPO, response by response: no padding, no masks, Python loops for the recursion."""
    config = case.ppo
    policy = AutoModelForCausalLM.from_pretrained(case.policy_path)
    critic = AutoModelForSequenceClassification.from_pretrained(case.critic_path)
    optimizers = adam(policy, config.policy_optimizer), adam(critic, config.critic_optimizer)
    num_updates = config.num_steps * config.num_epochs * config.num_minibatches
    update = 0
    for step in steps:
        (work,) = case.works(1, step)
        old, values, advantages, returns = _experience(case, policy, critic)
        for epoch in work.epochs:
            for index in epoch:
                rows = [order for micro in work.minibatches[index].micro_batches for order in micro]
                tokens = sum(len(case.rollouts[i].response_ids) for i in rows)
                surrogate = torch.zeros(())
                error = torch.zeros(())
                for i in rows:
                    ratio = (_response(case, policy, i, tiny.naive_logprobs, config.temperature) - old[i]).exp()
                    clipped = ratio.clamp(1 - config.loss.clip_ratio, 1 + config.loss.clip_ratio)
                    surrogate = surrogate - torch.minimum(ratio * advantages[i], clipped * advantages[i]).sum()
                    new = _response(case, critic, i, tiny.naive_values)
                    near = values[i] + (new - values[i]).clamp(-config.value_clip, config.value_clip)
                    error = error + 0.5 * torch.maximum((new - returns[i]) ** 2, (near - returns[i]) ** 2).sum()
                rate = linear_rate(config.policy_optimizer, update, num_updates)
                descend(policy, optimizers[0], surrogate / tokens, rate)
                descend(critic, optimizers[1], error / tokens, rate)
                update += 1
    return weights(policy), weights(critic)


def _response(case: PpoCase, model: PreTrainedModel, order: int, read, *arguments) -> torch.Tensor:  # type: ignore[no-untyped-def]
    rollout = case.rollouts[order]
    ids = [*rollout.prompt_ids, *rollout.response_ids]
    found: torch.Tensor = read(model, ids, *arguments)[len(rollout.prompt_ids) :]
    return found


@torch.no_grad()
def _experience(case: PpoCase, policy: PreTrainedModel, critic: PreTrainedModel) -> tuple[list[torch.Tensor], ...]:
    """Old log-probabilities, values, whitened advantages and returns of every response."""
    old, values, advantages, returns = [], [], [], []
    for i, score in enumerate(case.scores):
        old.append(_response(case, policy, i, tiny.naive_logprobs, case.ppo.temperature))
        values.append(_response(case, critic, i, tiny.naive_values))
        rewards = -case.kl_coef * (old[i] - torch.from_numpy(case.references[i]))
        rewards[-1] += score
        advantage, following, found = 0.0, 0.0, []
        for t in reversed(range(len(rewards))):
            delta = float(rewards[t]) + case.ppo.gamma * following - float(values[i][t])
            advantage = delta + case.ppo.gamma * case.ppo.lam * advantage
            following = float(values[i][t])
            found.insert(0, advantage)
        advantages.append(torch.tensor(found))
        returns.append(advantages[i] + values[i])
    everything = torch.cat(advantages)
    mean, deviation = everything.mean(), everything.var().sqrt()
    return old, values, [(a - mean) / deviation for a in advantages], returns


# --------------------------------------------------------------------------------------------- SFT and the reward model
def sft(case: SupervisedCase) -> tuple[Weights, list[float]]:
    """The weights after all batches, and each step's loss."""
    config = case.spec.optimizer
    model = AutoModelForCausalLM.from_pretrained(case.spec.model_path)
    optimizer, losses = adam(model, config), []
    for step, batch in enumerate(case.batches):
        counted = [tiny.naive_logprobs(model, s.token_ids)[torch.from_numpy(s.mask)] for s in batch]
        loss = -torch.cat(counted).mean()
        losses.append(float(loss.detach()))
        descend(model, optimizer, loss, linear_rate(config, step, case.spec.num_steps))
    return weights(model), losses


def score(model: PreTrainedModel, sequence: TokenSequence) -> float:
    """The score that transformers' own classifier gives to one sequence alone."""
    return float(_score(model, sequence).detach())


def _score(model: PreTrainedModel, sequence: TokenSequence) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([sequence.token_ids.tolist()])).logits
    return logits[0, 0]


def reward_model(case: SupervisedCase) -> Weights:
    """The weights after all batches of rankings: pair by pair."""
    spec = case.spec
    model = AutoModelForSequenceClassification.from_pretrained(spec.model_path)
    optimizer = adam(model, spec.optimizer)
    for step, batch in enumerate(case.batches):
        total = torch.zeros(())
        for ranking in batch:
            scores = [_score(model, sequence) for sequence in ranking.sequences]
            for (winner, loser), gap in zip(ranking.pairs, ranking.gaps, strict=True):
                lead = scores[winner] - scores[loser] - spec.margin * gap
                centre = spec.centering * (scores[winner] + scores[loser]) ** 2
                total = total + (torch.log1p(torch.exp(-lead)) + centre) / len(ranking.pairs)
        descend(model, optimizer, total / len(batch), linear_rate(spec.optimizer, step, spec.num_steps))
    return weights(model)


def gradient_norm(path: str) -> float:
    """The norm of the gradient that :func:`tests.trainers.backward` should give, whatever the split."""
    model = AutoModelForCausalLM.from_pretrained(path)
    counted = [tiny.naive_logprobs(model, s.token_ids)[torch.from_numpy(s.mask)] for s in tiny.sequences(2, seed=4)]
    (-torch.cat(counted).mean()).backward()
    return float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()])))
