"""Every formula again, from the papers: plain Python floats, loops and lists that hold the sampled tokens only.

A row is the list of a response's sampled tokens, so there are no masks, no gaps and no padding to get wrong.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

Row = Sequence[float]
LIMIT = 20.0  # of a log-ratio, before exp


def cut(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def bounded_exp(log_ratio: float) -> float:
    return math.exp(cut(log_ratio, -LIMIT, LIMIT))


# ---------------------------------------------------------------------------------------------------------- advantages
def gae(rewards: Row, values: Row, gamma: float, lam: float) -> tuple[list[float], list[float]]:
    """Advantages as the sum of (gamma lam)^l delta_{t+l}, with no recursion; then returns."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, after, strict=False)]
    advantages = [sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(deltas))) for i in range(len(deltas))]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def discounted_returns(rewards: Row, gamma: float) -> list[float]:
    return [sum(gamma ** (j - i) * rewards[j] for j in range(i, len(rewards))) for i in range(len(rewards))]


def grpo(totals: Row, lengths: Row) -> list[float]:
    if len(totals) < 2:
        return [0.0]
    return [(r - statistics.fmean(totals)) / (statistics.stdev(totals) + 1e-6) for r in totals]


def dr_grpo(totals: Row, lengths: Row) -> list[float]:
    return [r - statistics.fmean(totals) for r in totals]


def rloo(totals: Row, lengths: Row) -> list[float]:
    if len(totals) < 2:
        return [0.0]
    return [r - statistics.fmean([*totals[:i], *totals[i + 1 :]]) for i, r in enumerate(totals)]


def opo(totals: Row, lengths: Row) -> list[float]:
    if sum(lengths) == 0:
        return dr_grpo(totals, lengths)
    baseline = sum(length * r for length, r in zip(lengths, totals, strict=True)) / sum(lengths)
    return [r - baseline for r in totals]


def by_group(
    totals: Row, groups: Sequence[int], lengths: Row, formula: Callable[[Row, Row], list[float]]
) -> list[float]:
    """Apply a formula of one group to every group; the results stand where their rows stand."""
    results = [0.0] * len(totals)
    for group in set(groups):
        rows = [i for i, own in enumerate(groups) if own == group]
        for i, value in zip(rows, formula([totals[i] for i in rows], [lengths[i] for i in rows]), strict=True):
            results[i] = value
    return results


def whiten(values: Row, *, shift_mean: bool) -> list[float]:
    mean = statistics.fmean(values)
    variance = statistics.variance(values) if len(values) > 1 else 0.0
    return [(v - mean) / math.sqrt(variance + 1e-8) + (0.0 if shift_mean else mean) for v in values]


# ------------------------------------------------------------------------------------------------------------------ KL
def kl(logprob: float, ref_logprob: float, estimator: str) -> float:
    log_r = ref_logprob - logprob
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r**2 / 2
    log_r = min(log_r, LIMIT)
    return math.exp(log_r) - 1 - log_r


def kl_loss_term(logprob: float, old_logprob: float, ref_logprob: float, estimator: str) -> float:
    if estimator == "k3_unbiased":
        return bounded_exp(logprob - old_logprob) * kl(logprob, ref_logprob, "k3")
    return kl(logprob, ref_logprob, estimator)


def exact_kl(p: Row, q: Row) -> float:
    return sum(p_v * math.log(p_v / q_v) for p_v, q_v in zip(p, q, strict=True) if p_v > 0)


# -------------------------------------------------------------------------------------------------------------- rewards
def shape_rewards(
    score: float, logprobs: Row, ref_logprobs: Row, kl_coef: float, estimator: str, step_rewards: Row
) -> list[float]:
    rewards = [
        step - kl_coef * kl(p, q, estimator) for p, q, step in zip(logprobs, ref_logprobs, step_rewards, strict=True)
    ]
    return [*rewards[:-1], rewards[-1] + score] if rewards else []


def overlong_penalty(length: int, max_tokens: int, overlong_tokens: int, penalty: float) -> float:
    """DAPO, eq. 13: 0, then ((L_max - L_cache) - |y|) / L_cache, then -1; here with the sign turned, times penalty."""
    if length <= max_tokens - overlong_tokens:
        return 0.0
    if length <= max_tokens:
        return -penalty * ((max_tokens - overlong_tokens) - length) / overlong_tokens
    return penalty


# --------------------------------------------------------------------------------------------------------------- losses
def ppo_token(new: float, old: float, advantage: float, low: float, high: float, dual_clip: float = 0.0) -> float:
    ratio = bounded_exp(new - old)
    objective = min(ratio * advantage, cut(ratio, low, high) * advantage)
    if dual_clip and advantage < 0:
        objective = max(objective, dual_clip * advantage)
    return -objective


def sequence_ratio(new: Row, old: Row) -> float:
    return bounded_exp(statistics.fmean(n - o for n, o in zip(new, old, strict=True)))


def gspo_sequence(new: Row, old: Row, advantage: float, low: float, high: float) -> float:
    """GSPO, eq. 5: one clipped term a response."""
    if not new:
        return 0.0
    ratio = sequence_ratio(new, old)
    return -min(ratio * advantage, cut(ratio, low, high) * advantage)


def response_surrogate(new: Row, old: Row, advantage: float, low: float, high: float) -> float:
    """One clipped term a response, whose ratio is that of all of it."""
    ratio = bounded_exp(sum(n - o for n, o in zip(new, old, strict=True)))
    return -min(ratio * advantage, cut(ratio, low, high) * advantage) if new else 0.0


def cispo_token_gradient(new: float, old: float, advantage: float, low: float, high: float) -> float:
    """CISPO, eq. 4: the derivative by the token's log-probability, the clipped weight being a constant."""
    return -cut(bounded_exp(new - old), low, high) * advantage


def value_token(value: float, old: float, target: float, value_clip: float | None) -> float:
    if value_clip is None:
        return 0.5 * (value - target) ** 2
    near_old = old + cut(value - old, -value_clip, value_clip)
    return 0.5 * max((value - target) ** 2, (near_old - target) ** 2)


def language_modelling(logprobs: Row) -> float:
    return -sum(logprobs)


def bradley_terry_pair(
    chosen: float, rejected: float, margin: float, centering: float, certainty: float = 1.0
) -> float:
    right = math.log1p(math.exp(-(chosen - rejected - margin)))
    wrong = math.log1p(math.exp(-(rejected - chosen - margin)))
    return certainty * right + (1 - certainty) * wrong + centering * (chosen + rejected) ** 2


def step_label(reward: float, good: bool) -> float:
    probability = 1 / (1 + math.exp(-reward))
    return -math.log(probability if good else 1 - probability)


# ---------------------------------------------------------------------------------------------------------- corrections
def raw_weights(old: Row, rollout: Row, level: str) -> list[float]:
    log_ratios = [o - r for o, r in zip(old, rollout, strict=True)]
    if level == "token":
        return [bounded_exp(x) for x in log_ratios]
    of_row = sum(log_ratios) if level == "sequence" else sum(log_ratios) / max(len(log_ratios), 1)
    return [bounded_exp(of_row)] * len(log_ratios)


def bounded_weight(weight: float, mode: str, low: float, high: float) -> float:
    if mode == "truncate":
        return min(weight, high)
    return weight if low <= weight <= high else 0.0


def effective_sample_size(weights: Row) -> float:
    return sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))


# ------------------------------------------------------------------------------------------------------------ gradients
def numerical_gradient(function: Callable[[list[list[float]]], float], rows: Sequence[Row]) -> list[list[float]]:
    """Central differences of a function of rows, one token at a time."""
    step = 1e-6
    gradient = [[0.0] * len(row) for row in rows]
    for i, row in enumerate(rows):
        for t in range(len(row)):
            changed = [list(r) for r in rows]
            changed[i][t] = row[t] + step
            above = function(changed)
            changed[i][t] = row[t] - step
            gradient[i][t] = (above - function(changed)) / (2 * step)
    return gradient
