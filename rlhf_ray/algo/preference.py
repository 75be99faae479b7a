"""Losses that train a policy on ranked pairs directly, without a reward model: DPO and its relatives.

All take log-probabilities of whole responses, log p(response | prompt) summed over its tokens, and return ``LossSums``
over pairs (KTO: over single responses). ``policy_*`` carry the gradient, everything else is constant. ``weights`` [P],
where given, count a pair more or less; the weight of the sums is then their sum.

The metrics speak of the implicit reward that a loss compares: ``chosen_rewards``, ``rejected_rewards``,
``reward_margin``, their difference, and ``accuracy``, in which a tie counts half.

A label need not be certain: DPO and IPO have a loss for soft labels, the mean of their loss over the label. For the
others that mean is no loss of theirs: hinge and SimPO would not stop at the label's odds, robust DPO corrects for flips
of hard labels, and ORPO and KTO make one of the two responses a demonstration.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rlhf_ray.algo.losses import LossSums, expected_over_labels, pair_accuracy

# Odds p / (1 - p) end here, where 1 - p is still far above the rounding of float32.
MAX_ODDS = 1e6


def dpo_loss(
    *,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    margins: Tensor | None = None,
    probabilities: Tensor | None = None,
    weights: Tensor | None = None,
) -> LossSums:
    """Return sum_p w_p -log sigmoid(m_p), all tensors [P] (Rafailov et al. 2023, eq. 7).

    m = beta ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)) is the margin of the implicit rewards.
    With ``label_smoothing`` e, the share of pairs believed to be labelled the wrong way round, the loss is
    -(1 - e) log sigmoid(m) - e log sigmoid(-m): conservative DPO (Mitchell 2023), smallest at log((1 - e) / e).

    ``probabilities`` q, one a pair, are soft labels: the loss is its mean over the label, q loss(m) + (1 - q) loss(-m),
    which without smoothing is smallest at m = log(q / (1 - q)) (Furuta et al. 2024).

    ``margins`` are by how much the better response should lead: m becomes m - margin for either order of a pair, as
    in DPO with an offset (Amini et al. 2024) and in the reward model's loss.
    """
    _check_share(label_smoothing=label_smoothing)
    chosen = _reward(policy=policy_chosen, ref=ref_chosen, beta=beta)
    rejected = _reward(policy=policy_rejected, ref=ref_rejected, beta=beta)
    offset = torch.zeros_like(chosen) if margins is None else margins.detach().to(chosen.dtype)
    _check_shape(chosen, margins=offset)

    def labelled(margin: Tensor) -> Tensor:
        kept = -(1 - label_smoothing) * logsigmoid(margin - offset)
        return kept - label_smoothing * logsigmoid(-margin - offset) if label_smoothing else kept

    per_pair = expected_over_labels(labelled(chosen - rejected), labelled(rejected - chosen), probabilities)
    return _pair_sums(per_pair=per_pair, chosen=chosen, rejected=rejected, probabilities=probabilities, weights=weights)


def robust_dpo_loss(
    *,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    flip_rate: float,
    weights: Tensor | None = None,
) -> LossSums:
    """Return sum_p w_p (-(1 - e) log sigmoid(m_p) + e log sigmoid(-m_p)) / (1 - 2 e), all tensors [P].

    Margins m as in ``dpo_loss``. Where labels were flipped with probability e = ``flip_rate``, its expectation is the
    loss of ``dpo_loss`` on the true labels (rDPO: Chowdhury et al. 2024). Not bounded from below.
    """
    _check_share(flip_rate=flip_rate)
    chosen = _reward(policy=policy_chosen, ref=ref_chosen, beta=beta)
    rejected = _reward(policy=policy_rejected, ref=ref_rejected, beta=beta)
    margin = chosen - rejected
    per_pair = (flip_rate * logsigmoid(-margin) - (1 - flip_rate) * logsigmoid(margin)) / (1 - 2 * flip_rate)
    return _pair_sums(per_pair=per_pair, chosen=chosen, rejected=rejected, weights=weights)


def hinge_loss(
    *,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    weights: Tensor | None = None,
) -> LossSums:
    """Return sum_p w_p max(0, 1 - m_p), all tensors [P], margins m as in ``dpo_loss``.

    The calibration loss of SLiC (Zhao et al. 2023), with a margin of 1 / beta, on log-ratios to the reference (Liu et
    al. 2024, RSO). SLiC itself has no reference there: give it zeros.
    """
    chosen = _reward(policy=policy_chosen, ref=ref_chosen, beta=beta)
    rejected = _reward(policy=policy_rejected, ref=ref_rejected, beta=beta)
    return _pair_sums(per_pair=relu(1 - (chosen - rejected)), chosen=chosen, rejected=rejected, weights=weights)


def ipo_loss(
    *,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    tau: float,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    probabilities: Tensor | None = None,
    weights: Tensor | None = None,
) -> LossSums:
    """Return sum_p w_p (h_p - 1 / (2 tau))^2, all tensors [P] (Azar et al. 2023, eq. 17).

    h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected). With lengths, numbers of response tokens, each
    log-ratio is that of the mean token: without, the target 1 / (2 tau) is a sum over tokens and long responses reach
    it sooner. The paper's equation has no lengths; its authors' runs and TRL average. The implicit reward is tau times
    the log-ratio that is compared.

    ``probabilities`` q, one a pair, are soft labels: q (h - 1 / (2 tau))^2 + (1 - q) (h + 1 / (2 tau))^2, the paper's
    loss in expectation over the label that would be drawn, smallest at h = (2 q - 1) / (2 tau).
    """
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("chosen_lengths and rejected_lengths must both be given, or neither")
    _check_positive(tau=tau)
    chosen = _reward(policy=policy_chosen, ref=ref_chosen, beta=1.0)
    rejected = _reward(policy=policy_rejected, ref=ref_rejected, beta=1.0)
    if chosen_lengths is not None and rejected_lengths is not None:
        chosen, rejected = _per_token(chosen, chosen_lengths), _per_token(rejected, rejected_lengths)
    target = 1 / (2 * tau)
    per_pair = expected_over_labels(
        (chosen - rejected - target).square(), (rejected - chosen - target).square(), probabilities
    )
    return _pair_sums(
        per_pair=per_pair, chosen=tau * chosen, rejected=tau * rejected, probabilities=probabilities, weights=weights
    )


def simpo_loss(
    *,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    gamma: float,
    weights: Tensor | None = None,
) -> LossSums:
    """Return sum_p w_p -log sigmoid(r_c - r_r - gamma), all tensors [P] (Meng et al. 2024, eq. 6).

    The reward r = beta policy / length is that of the mean token; there is no reference. ``gamma`` is the margin that
    the rewards should have (not gamma / beta, as some programs ask for it).
    """
    _check_positive(beta=beta)
    if gamma < 0:
        raise ValueError(f"gamma ({gamma}) must be 0 or more; it is the margin between the two rewards")
    chosen = beta * _per_token(policy_chosen, chosen_lengths)
    rejected = beta * _per_token(policy_rejected, rejected_lengths)
    per_pair = -logsigmoid(chosen - rejected - gamma)
    return _pair_sums(per_pair=per_pair, chosen=chosen, rejected=rejected, weights=weights)


def odds_ratio_loss(
    *,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    weights: Tensor | None = None,
) -> LossSums:
    """Return sum_p w_p -log sigmoid(log(odds_c / odds_r)), all tensors [P] (Hong et al. 2024, eq. 4 and 7).

    odds = p / (1 - p) with p the geometric mean of the response tokens' probabilities, at most ``MAX_ODDS``. This is
    the second term of ORPO: add it to ``chosen_likelihood_loss`` with ``with_term``. The implicit reward is log odds.
    """
    chosen = _log_odds(_per_token(policy_chosen, chosen_lengths))
    rejected = _log_odds(_per_token(policy_rejected, rejected_lengths))
    return _pair_sums(per_pair=-logsigmoid(chosen - rejected), chosen=chosen, rejected=rejected, weights=weights)


def kto_loss(
    *,
    policy: Tensor,
    ref: Tensor,
    desirable: Tensor,
    kl: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossSums:
    """Return the loss of KTO summed over single responses, all tensors [N] (Ethayarajh et al. 2024).

        desirable_weight (1 - sigmoid(beta (policy - ref - kl)))       where ``desirable``
        undesirable_weight (1 - sigmoid(beta (kl - policy + ref)))     elsewhere

    ``kl`` is the baseline z_0, one number for the whole batch and all ranks, in nats: the mean log-ratio of responses
    that belong to other prompts, cut at 0 from below. It takes no gradient. The weight of the sums counts responses;
    the metrics are the mean implicit rewards beta (policy - ref) of either kind.
    """
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable ({desirable.dtype}) must be a mask of bools; write desirable != 0")
    if min(desirable_weight, undesirable_weight) < 0:
        raise ValueError(
            f"desirable_weight ({desirable_weight}) and undesirable_weight ({undesirable_weight}) must be 0 or more"
        )
    rewards = _reward(policy=policy, ref=ref, beta=beta)
    _check_shape(rewards, desirable=desirable)
    baseline = beta * torch.as_tensor(kl, dtype=rewards.dtype, device=rewards.device).detach()
    surprise = torch.where(desirable, baseline - rewards, rewards - baseline).sigmoid()  # 1 - sigmoid(x) = sigmoid(-x)
    weights = torch.where(desirable, rewards.new_tensor(desirable_weight), rewards.new_tensor(undesirable_weight))
    loss = (weights * surprise).sum()

    measured = rewards.detach().double()
    kinds = {"chosen_rewards": desirable, "rejected_rewards": ~desirable}
    metrics = {name: (torch.where(kind, measured, 0.0).sum(), kind.sum().double()) for name, kind in kinds.items()}
    return LossSums(loss=loss, weight=measured.new_tensor(len(measured)), metrics=metrics)


def chosen_likelihood_loss(*, policy_chosen: Tensor, chosen_lengths: Tensor, weights: Tensor | None = None) -> LossSums:
    """Return sum_p w_p -policy_chosen / length, all tensors [P]: the mean token's negative log-likelihood of a pair.

    The term that keeps the chosen response likely while its margin grows (Pang et al. 2024, eq. 1, called RPO
    elsewhere; the first term of Hong et al. 2024, eq. 6). ``language_modelling_loss`` weighs tokens equally instead.
    """
    per_pair = -_per_token(policy_chosen, chosen_lengths)
    weights = _weights(per_pair, weights)
    measured = ((weights * per_pair.detach()).double().sum(), weights.double().sum())
    return LossSums(
        loss=(weights * per_pair).sum(),
        weight=weights.double().sum(),
        metrics={"chosen_negative_log_likelihood": measured},
    )


def with_term(sums: LossSums, *, term: LossSums, coef: float) -> LossSums:
    """Return ``sums`` with ``coef`` times the loss of ``term`` added, for the same pairs with the same weights.

    Keeps the weight of ``sums`` and the metrics of both, in which the losses themselves do not occur.
    """
    if not torch.equal(sums.weight, term.weight):
        raise ValueError(
            f"the weight of term ({term.weight.item()}) must be that of sums ({sums.weight.item()}); "
            "compute both from the same pairs with the same weights"
        )
    return LossSums(
        loss=sums.loss + coef * term.loss,
        weight=sums.weight,
        metrics={**sums.metrics, **term.metrics},
        maxima={**sums.maxima, **term.maxima},
    )


def _reward(*, policy: Tensor, ref: Tensor, beta: float) -> Tensor:
    """Beta times the log-ratio of policy and reference [P], in float32 or better."""
    _check_positive(beta=beta)
    _check_shape(policy, ref=ref)
    policy = _accurate(policy)
    return beta * (policy - ref.detach().to(policy.dtype))


def _per_token(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Divide [P] by the number of response tokens [P]; an empty response has a sum of 0 and stays 0."""
    _check_shape(logprobs, lengths=lengths)
    return _accurate(logprobs) / lengths.clamp(min=1)


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p [P]; beyond ``MAX_ODDS`` constant, so that certainty has no infinite gradient."""
    logprobs = logprobs.clamp(max=-1 / MAX_ODDS)
    return logprobs - (-torch.expm1(logprobs)).log()


def _pair_sums(
    *,
    per_pair: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    weights: Tensor | None,
    probabilities: Tensor | None = None,
) -> LossSums:
    weights = _weights(per_pair, weights)
    weight = weights.double().sum()
    margin = (chosen - rejected).detach()
    measures = {
        "chosen_rewards": chosen.detach(),
        "rejected_rewards": rejected.detach(),
        "reward_margin": margin,
    }
    metrics = {name: ((weights * measure).double().sum(), weight) for name, measure in measures.items()}
    metrics["accuracy"] = pair_accuracy(margin, probabilities=probabilities, weights=weights)
    return LossSums(loss=(weights * per_pair).sum(), weight=weight, metrics=metrics)


def _weights(per_pair: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return torch.ones_like(per_pair)
    _check_shape(per_pair, weights=weights)
    return weights.detach().to(per_pair.dtype)


def _accurate(logprobs: Tensor) -> Tensor:
    return logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))


def _check_shape(first: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if first.ndim != 1 or tensor.shape != first.shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} must be [P], one number a pair, as {tuple(first.shape)}")


def _check_positive(**factors: float) -> None:
    for name, factor in factors.items():
        if not factor > 0:
            raise ValueError(f"{name} ({factor}) must be above 0; try 0.1")


def _check_share(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share < 0.5:
            raise ValueError(f"{name} ({share}) must lie in [0, 0.5): with half of the labels wrong nothing is left")
