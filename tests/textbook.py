"""The same training, written again without any of our engines: one process, plain torch, the whole batch at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_ray.config.algorithm import CorrectionConfig, LossConfig
from rlhf_ray.config.training import OptimizerConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.records import Rollout
from rlhf_ray.rewards.heads import Heads
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


@dataclass(frozen=True)
class Lesson:
    """One response and all that is constant while a step learns from it: tensors [R]."""

    old: torch.Tensor
    ref: torch.Tensor
    whole_ref: torch.Tensor  # [R, V] where the KL is exact
    correction: torch.Tensor
    values: torch.Tensor
    returns: torch.Tensor
    advantages: torch.Tensor


def ppo(case: PpoCase, *, steps: Sequence[int]) -> tuple[Weights, Weights]:
    """PPO and its family, response by response: no padding, no masks, Python loops for the recursion."""
    config = case.ppo
    policy = AutoModelForCausalLM.from_pretrained(case.policy_path)
    optimizer = adam(policy, config.policy_optimizer)
    critic = None
    if config.advantages == "gae":
        critic = AutoModelForSequenceClassification.from_pretrained(case.critic_path)
        critic_optimizer = adam(critic, config.critic_optimizer)
    num_updates = config.num_steps * config.num_epochs * config.num_minibatches
    update = 0
    for step in steps:
        (work,) = case.works(1, step)
        lessons = _lessons(case, policy, critic)
        for index in (index for epoch in work.epochs for index in epoch):
            rows = [order for micro in work.minibatches[index].micro_batches for order in micro]
            rate = linear_rate(config.policy_optimizer, update, num_updates)
            descend(policy, optimizer, _policy_loss(case, policy, lessons, rows), rate)
            if critic is not None:
                descend(critic, critic_optimizer, _value_loss(case, critic, lessons, rows), rate)
            update += 1
    return weights(policy), {} if critic is None else weights(critic)


def _policy_loss(
    case: PpoCase, policy: PreTrainedModel, lessons: Sequence[Lesson], rows: Sequence[int]
) -> torch.Tensor:
    config, total, num_tokens, num_responses = case.ppo, torch.zeros(()), 0, 0
    for i in rows:
        if not len(case.rollouts[i].response_ids):
            continue
        whole = _response(case, policy, i, tiny.naive_distributions, config.temperature)
        new = _picked(whole, case.rollouts[i])
        terms = -_surrogate(config.loss, new, lessons[i]) * lessons[i].correction
        if config.kl.placement == "loss":
            terms = terms + case.kl_coef * _kl_term(config.kl.estimator, new, whole, lessons[i])
        terms = terms + config.entropy_coef * (whole.exp() * whole).sum(-1)
        total = total + (terms.mean() if config.loss.aggregation == "sequence_mean" else terms.sum())
        num_tokens += len(terms)
        num_responses += 1
    divisors = {
        "token_mean": num_tokens,
        "sequence_mean": num_responses,
        "sequence_sum": num_responses,
        "constant": num_responses * config.max_response_tokens,
    }
    return total / divisors[config.loss.aggregation]


def _surrogate(loss: LossConfig, new: torch.Tensor, lesson: Lesson) -> torch.Tensor:
    """What is maximised at each token."""
    low, high = 1 - loss.clip_ratio, 1 + (loss.clip_ratio_high or loss.clip_ratio)
    advantages = lesson.advantages
    if loss.surrogate == "cispo":  # MiniMax-M1 2025, eq. 4 and 5
        return (new - lesson.old).exp().clamp(low, high).detach() * advantages * new
    ratio = (new - lesson.old).exp()
    if loss.surrogate == "response":  # Ahmadian et al. 2024, section 2: the whole response is one action
        terms = (new - lesson.old).sum().exp() * lesson.advantages
        clipped = (new - lesson.old).sum().exp().clamp(low, high) * lesson.advantages
        return torch.minimum(terms, clipped) / len(new)
    if loss.surrogate == "gspo":  # Zheng et al. 2025, eq. 5 and 7: the ratio of the response, the same at every token
        ratio = (new - lesson.old).mean().exp().expand_as(new)
    gain = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    if loss.dual_clip:  # Ye et al. 2020, eq. 5
        gain = torch.where(advantages < 0, torch.maximum(gain, loss.dual_clip * advantages), gain)
    return gain


def _kl_term(estimator: str, new: torch.Tensor, whole: torch.Tensor, lesson: Lesson) -> torch.Tensor:
    """The penalty at each token, with its gradient (Schulman 2020; DeepSeek-V3.2 2025, eq. 7)."""
    log_ratio = new - lesson.ref
    if estimator == "k2":
        return log_ratio**2 / 2
    if estimator == "exact":
        return (whole.exp() * (whole - lesson.whole_ref)).sum(-1)
    k3 = (-log_ratio).exp() - 1 + log_ratio
    return k3 if estimator == "k3" else (new - lesson.old).exp() * k3


def _value_loss(case: PpoCase, critic: PreTrainedModel, lessons: Sequence[Lesson], rows: Sequence[int]) -> torch.Tensor:
    clip, error, tokens = case.ppo.value_clip, torch.zeros(()), 0
    for i in rows:
        new, lesson = _response(case, critic, i, tiny.naive_values), lessons[i]
        near = lesson.values + (new - lesson.values).clamp(-clip, clip) if clip else new
        error = error + 0.5 * torch.maximum((new - lesson.returns) ** 2, (near - lesson.returns) ** 2).sum()
        tokens += len(new)
    return error / tokens


def _response(case: PpoCase, model: PreTrainedModel, order: int, read, *arguments) -> torch.Tensor:  # type: ignore[no-untyped-def]
    rollout = case.rollouts[order]
    ids = [*rollout.prompt_ids, *rollout.response_ids]
    found: torch.Tensor = read(model, ids, *arguments)[len(rollout.prompt_ids) :]
    return found


def _picked(whole: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """Of distributions [R, V] what they say of the response's tokens [R]."""
    return torch.stack([row[int(token)] for row, token in zip(whole, rollout.response_ids, strict=True)])


# ------------------------------------------------------------------------------------- what each response is worth
@torch.no_grad()
def _lessons(case: PpoCase, policy: PreTrainedModel, critic: PreTrainedModel | None) -> list[Lesson]:
    """Before any update: old log-probabilities, values, advantages and returns of every response."""
    config, found = case.ppo, []
    for i, rollout in enumerate(case.rollouts):
        whole = _response(case, policy, i, tiny.naive_distributions, config.temperature)
        empty = torch.zeros(len(whole))
        old = _picked(whole, rollout) if len(whole) else empty
        reference = torch.from_numpy(case.references[i])
        ref = reference if reference.ndim == 1 else _picked(reference, rollout)
        values = empty if critic is None else _response(case, critic, i, tiny.naive_values)
        correction = _correction(config.correction, old, torch.from_numpy(rollout.rollout_logprobs))
        found.append(Lesson(old, ref, reference, correction, values, empty, empty))
    totals = [_token_rewards(case, policy, i, lesson, score) for (i, lesson), score in _scored(case, found)]
    if config.reward.whiten_rewards:  # lm-human-preferences: the mean says whether the policy does well, and stays
        totals = _over_deviation(totals)
    advantages = _advantages(case, totals, [lesson.values.tolist() for lesson in found])
    by_default = config.advantages in ("gae", "reinforce_pp", "reinforce_pp_baseline")  # their authors whiten
    if by_default if config.whiten_advantages is None else config.whiten_advantages:
        advantages = [(r, whitened) for (r, _), whitened in zip(advantages, _whitened(advantages), strict=True)]
    return [
        replace(lesson, returns=torch.tensor(returns), advantages=torch.tensor(own))
        for lesson, (returns, own) in zip(found, advantages, strict=True)
    ]


def _scored(case: PpoCase, lessons: Sequence[Lesson]) -> Iterable[tuple[tuple[int, Lesson], float]]:
    return zip(enumerate(lessons), _shaped_scores(case), strict=True)


def _shaped_scores(case: PpoCase) -> list[float]:
    config, reward, shaped = case.ppo, case.ppo.reward, []
    for rollout, score in zip(case.rollouts, case.scores, strict=True):
        if reward.score_clip:
            score = max(-reward.score_clip, min(reward.score_clip, score))
        if rollout.finish_reason == "length":
            score -= reward.missing_eos_penalty
        if reward.overlong_penalty:  # Yu et al. 2025, eq. 13
            begin = config.max_response_tokens - reward.overlong_tokens
            beyond = max(0, len(rollout.response_ids) - begin)
            score -= reward.overlong_penalty * min(1.0, beyond / reward.overlong_tokens)
        shaped.append(score)
    if config.advantages == "reinforce_pp_baseline":  # Hu et al. 2025, section 3.2
        prompts = [rollout.prompt_id for rollout in case.rollouts]
        means = {p: statistics.fmean(s for s, q in zip(shaped, prompts, strict=True) if p == q) for p in prompts}
        shaped = [score - means[prompt] for score, prompt in zip(shaped, prompts, strict=True)]
    return shaped


def _token_rewards(case: PpoCase, policy: PreTrainedModel, order: int, lesson: Lesson, score: float) -> list[float]:
    config, rewards = case.ppo, [0.0] * len(lesson.old)
    if config.kl.placement == "reward":
        log_ratio = (lesson.old - lesson.ref).tolist()
        if config.kl.estimator == "exact":
            whole = _response(case, policy, order, tiny.naive_distributions, config.temperature)
            kl = (whole.exp() * (whole - lesson.whole_ref)).sum(-1).tolist()
        else:
            kl = [{"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[config.kl.estimator] for x in log_ratio]
        rewards = [-case.kl_coef * x for x in kl]
    for index, reward in case.step_rewards.get(order, ()):
        rewards[index] += reward
    if rewards:
        rewards[-1] += score
    return rewards


def _advantages(
    case: PpoCase, rewards: list[list[float]], values: list[list[float]]
) -> list[tuple[list[float], list[float]]]:
    """(returns, advantages) of every response."""
    config, name = case.ppo, case.ppo.advantages
    if name == "gae":
        critic_lam = config.lam if config.critic_lam is None else config.critic_lam
        found = []
        for r, v in zip(rewards, values, strict=True):
            targets = [a + b for a, b in zip(_gae(r, v, config.gamma, critic_lam), v, strict=True)]
            found.append((targets, _gae(r, v, config.gamma, config.lam)))
        return found
    prompts = [rollout.prompt_id for rollout in case.rollouts]
    if name in ("reinforce_pp", "reinforce_pp_baseline", "remax"):
        to_go = [_gae(r, [0.0] * len(r), config.gamma, 1.0) for r in rewards]
        taken = [case.baselines[p] if name == "remax" else 0.0 for p in prompts]
        return [([0.0] * len(g), [x - b for x in g]) for g, b in zip(to_go, taken, strict=True)]
    totals, found = [math.fsum(r) for r in rewards], []
    for i, prompt in enumerate(prompts):
        group = [j for j, other in enumerate(prompts) if other == prompt]
        advantage = _against_group(name, i, group, totals, [len(r) for r in rewards])
        found.append(([0.0] * len(rewards[i]), [advantage] * len(rewards[i])))
    return found


def _gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    advantage, following, found = 0.0, 0.0, []
    for r, v in zip(reversed(rewards), reversed(values), strict=True):
        advantage = r + gamma * following - v + gamma * lam * advantage
        following = v
        found.insert(0, advantage)
    return found


def _against_group(name: str, i: int, group: list[int], totals: list[float], lengths: list[int]) -> float:
    own = [totals[j] for j in group]
    others = [totals[j] for j in group if j != i]
    if name == "grpo":  # Shao et al. 2024, section 4.1.2
        return (totals[i] - statistics.fmean(own)) / (statistics.stdev(own) + 1e-6)
    if name == "dr_grpo":  # Liu et al. 2025
        return totals[i] - statistics.fmean(own)
    if name == "rloo":  # Ahmadian et al. 2024
        return totals[i] - statistics.fmean(others)
    assert name == "opo"  # Hao et al. 2025
    return totals[i] - sum(lengths[j] * totals[j] for j in group) / sum(lengths[j] for j in group)


def _over_deviation(rewards: list[list[float]]) -> list[list[float]]:
    everything = [reward for own in rewards for reward in own]
    mean, deviation = statistics.fmean(everything), statistics.stdev(everything)
    return [[(reward - mean) / deviation + mean for reward in own] for own in rewards]


def _whitened(advantages: list[tuple[list[float], list[float]]]) -> list[list[float]]:
    everything = [a for _, own in advantages for a in own]
    mean, deviation = statistics.fmean(everything), statistics.stdev(everything)
    return [[(a - mean) / deviation for a in own] for _, own in advantages]


def _correction(config: CorrectionConfig, old: torch.Tensor, engine: torch.Tensor) -> torch.Tensor:
    """Truncated or masked importance weights (Yao et al. 2025; IcePop 2025), of tokens or of the whole response."""
    if config.level == "none" or not len(old):
        return torch.ones(len(old))
    log_ratio = [a - b for a, b in zip(old.tolist(), engine.tolist(), strict=True)]
    if config.level == "sequence":
        log_ratio = [math.fsum(log_ratio)] * len(log_ratio)
    if config.level == "geometric":
        log_ratio = [math.fsum(log_ratio) / len(log_ratio)] * len(log_ratio)
    found = [math.exp(x) for x in log_ratio]
    if config.mode == "truncate":
        return torch.tensor([min(w, config.high) for w in found])
    return torch.tensor([w if config.low <= w <= config.high else 0.0 for w in found])


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


def _axis_score(model: PreTrainedModel, sequence: TokenSequence, heads: Heads, axis: str) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([sequence.token_ids.tolist()])).logits[0]
    if axis:
        return logits[heads.axes.index(axis)]
    total = torch.zeros(())
    for weight, logit in zip(heads.weights, logits, strict=True):
        total = total + weight * logit
    return total


def reward_model(case: SupervisedCase) -> Weights:
    """The weights after all batches of rankings: pair by pair."""
    spec = case.spec
    model = AutoModelForSequenceClassification.from_pretrained(spec.model_path)
    optimizer = adam(model, spec.optimizer)
    for step, batch in enumerate(case.batches):
        total = torch.zeros(())
        for ranking in batch:
            scores = [_axis_score(model, sequence, spec.heads, ranking.axis) for sequence in ranking.sequences]
            certain = ranking.probabilities or (1.0,) * len(ranking.pairs)
            for (winner, loser), gap, share in zip(ranking.pairs, ranking.gaps, certain, strict=True):
                lead, margin = scores[winner] - scores[loser], spec.margin * gap
                right, wrong = (torch.log1p(torch.exp(margin - each)) for each in (lead, -lead))
                centre = spec.centering * (scores[winner] + scores[loser]) ** 2
                total = total + (share * right + (1 - share) * wrong + centre) / len(ranking.pairs)
        descend(model, optimizer, total / len(batch), linear_rate(spec.optimizer, step, spec.num_steps))
    return weights(model)


def gradient_norm(path: str) -> float:
    """The norm of the gradient that :func:`tests.trainers.backward` should give, whatever the split."""
    model = AutoModelForCausalLM.from_pretrained(path)
    counted = [tiny.naive_logprobs(model, s.token_ids)[torch.from_numpy(s.mask)] for s in tiny.sequences(2, seed=4)]
    (-torch.cat(counted).mean()).backward()
    return float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()])))
