"""Preference losses against loops over Python floats, at extremes, and cut into parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from rlhf_ray.algo.losses import LossSums
from rlhf_ray.algo.preference import (
    chosen_likelihood_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
    with_term,
)

Loss = Callable[..., LossSums]
Row = dict[str, float]

PAIRS = 7
POLICY = ("policy_chosen", "policy_rejected")
REFERENCE = ("ref_chosen", "ref_rejected")
LENGTHS = ("chosen_lengths", "rejected_lengths")
SOFT = ("probabilities",)
MARGINS = ("margins",)


TURNED = dict(zip(POLICY + REFERENCE + LENGTHS, POLICY[::-1] + REFERENCE[::-1] + LENGTHS[::-1], strict=True))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def ratios(row: Row) -> tuple[float, float]:
    return row["policy_chosen"] - row["ref_chosen"], row["policy_rejected"] - row["ref_rejected"]


def mean_tokens(row: Row) -> tuple[float, float]:
    return row["policy_chosen"] / row["chosen_lengths"], row["policy_rejected"] / row["rejected_lengths"]


# Each returns the loss of one pair and the two rewards that it compares, in plain floats.
def dpo_of(row: Row, *, beta: float, smoothing: float, offset: bool = False) -> tuple[float, float, float]:
    chosen, rejected = (beta * ratio for ratio in ratios(row))
    lead = row["margins"] if offset else 0.0
    kept, flipped = -log_sigmoid(chosen - rejected - lead), -log_sigmoid(rejected - chosen - lead)
    return (1 - smoothing) * kept + smoothing * flipped, chosen, rejected


def robust_of(row: Row, *, beta: float, flips: float) -> tuple[float, float, float]:
    chosen, rejected = (beta * ratio for ratio in ratios(row))
    kept, flipped = -log_sigmoid(chosen - rejected), -log_sigmoid(rejected - chosen)
    return ((1 - flips) * kept - flips * flipped) / (1 - 2 * flips), chosen, rejected


def hinge_of(row: Row, *, beta: float) -> tuple[float, float, float]:
    chosen, rejected = (beta * ratio for ratio in ratios(row))
    return max(0.0, 1 - chosen + rejected), chosen, rejected


def ipo_of(row: Row, *, tau: float, averaged: bool) -> tuple[float, float, float]:
    chosen, rejected = ratios(row)
    if averaged:
        chosen, rejected = chosen / row["chosen_lengths"], rejected / row["rejected_lengths"]
    return (chosen - rejected - 0.5 / tau) ** 2, tau * chosen, tau * rejected


def expected(loop: Callable[[Row], tuple[float, float, float]]) -> Callable[[Row], tuple[float, float, float]]:
    """The mean of a pair's loss over who is the better."""

    def of(row: Row) -> tuple[float, float, float]:
        turned = {TURNED.get(name, name): value for name, value in row.items()}
        loss, chosen, rejected = loop(row)
        return row["probabilities"] * loss + (1 - row["probabilities"]) * loop(turned)[0], chosen, rejected

    return of


def simpo_of(row: Row, *, beta: float, gamma: float) -> tuple[float, float, float]:
    chosen, rejected = (beta * mean for mean in mean_tokens(row))
    return -log_sigmoid(chosen - rejected - gamma), chosen, rejected


def odds_of(row: Row) -> tuple[float, float, float]:
    chosen, rejected = (math.log(math.exp(mean) / (1 - math.exp(mean))) for mean in mean_tokens(row))
    return -log_sigmoid(chosen - rejected), chosen, rejected


CASES: dict[str, tuple[Loss, tuple[str, ...], Callable[[Row], tuple[float, float, float]]]] = {
    "dpo": (partial(dpo_loss, beta=0.3), POLICY + REFERENCE, partial(dpo_of, beta=0.3, smoothing=0.0)),
    "conservative": (
        partial(dpo_loss, beta=0.3, label_smoothing=0.1),
        POLICY + REFERENCE,
        partial(dpo_of, beta=0.3, smoothing=0.1),
    ),
    "robust": (
        partial(robust_dpo_loss, beta=0.3, flip_rate=0.2),
        POLICY + REFERENCE,
        partial(robust_of, beta=0.3, flips=0.2),
    ),
    "hinge": (partial(hinge_loss, beta=0.3), POLICY + REFERENCE, partial(hinge_of, beta=0.3)),
    "ipo": (partial(ipo_loss, tau=0.2), POLICY + REFERENCE, partial(ipo_of, tau=0.2, averaged=False)),
    "ipo averaged": (
        partial(ipo_loss, tau=0.2),
        POLICY + REFERENCE + LENGTHS,
        partial(ipo_of, tau=0.2, averaged=True),
    ),
    "soft": (
        partial(dpo_loss, beta=0.3, label_smoothing=0.1),
        POLICY + REFERENCE + SOFT,
        expected(partial(dpo_of, beta=0.3, smoothing=0.1)),
    ),
    "offset": (
        partial(dpo_loss, beta=0.3, label_smoothing=0.1),
        POLICY + REFERENCE + SOFT + MARGINS,
        expected(partial(dpo_of, beta=0.3, smoothing=0.1, offset=True)),
    ),
    "soft ipo": (
        partial(ipo_loss, tau=0.2),
        POLICY + REFERENCE + LENGTHS + SOFT,
        expected(partial(ipo_of, tau=0.2, averaged=True)),
    ),
    "simpo": (partial(simpo_loss, beta=2.0, gamma=0.5), POLICY + LENGTHS, partial(simpo_of, beta=2.0, gamma=0.5)),
    "odds ratio": (odds_ratio_loss, POLICY + LENGTHS, odds_of),
}


@pytest.fixture
def pairs() -> dict[str, Tensor]:
    """Ragged responses in float64: summed log-probabilities of 1 to 40 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = {name: torch.randint(1, 41, (PAIRS,), generator=generator) for name in LENGTHS}
    sums = {}
    for name in POLICY + REFERENCE:
        of_token = 0.1 + torch.rand(PAIRS, generator=generator, dtype=torch.float64)
        sums[name] = -of_token * lengths["chosen_lengths" if name.endswith("chosen") else "rejected_lengths"]
    uniform = torch.rand(2, PAIRS, generator=generator, dtype=torch.float64)
    return sums | lengths | {"probabilities": 0.51 + 0.49 * uniform[0], "margins": uniform[1]}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Loss, tuple[str, ...], Callable[[Row], tuple[float, float, float]]]:
    return CASES[request.param]


def chosen_rows(tensors: dict[str, Tensor], names: Sequence[str], rows: slice = slice(None)) -> dict[str, Tensor]:
    return {name: tensors[name][rows] for name in names}


def mean_metrics(sums: LossSums) -> dict[str, float]:
    return {name: (total / weight).item() for name, (total, weight) in sums.metrics.items()}


# ------------------------------------------------------------------------------------------------------------ all pairs
@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_and_its_metrics_equal_a_loop_over_pairs(case, pairs: dict[str, Tensor], weighted: bool) -> None:  # type: ignore[no-untyped-def]
    loss, names, loop = case
    weights = torch.linspace(0.5, 2.0, PAIRS, dtype=torch.float64) if weighted else torch.ones(PAIRS).double()
    rows = [{name: tensor[p].item() for name, tensor in pairs.items()} for p in range(PAIRS)]
    losses, chosen, rejected = zip(*map(loop, rows), strict=True)
    total = sum(weights.tolist())

    def mean(values: Sequence[float]) -> float:
        return sum(w * v for w, v in zip(weights.tolist(), values, strict=True)) / total

    sums = loss(**chosen_rows(pairs, names), **({"weights": weights} if weighted else {}))
    assert sums.weight.item() == pytest.approx(total)
    assert (sums.loss / sums.weight).item() == pytest.approx(mean(losses))
    assert mean_metrics(sums) == {
        "chosen_rewards": pytest.approx(mean(chosen)),
        "rejected_rewards": pytest.approx(mean(rejected)),
        "reward_margin": pytest.approx(mean([c - r for c, r in zip(chosen, rejected, strict=True)])),
        "accuracy": pytest.approx(mean([float(c > r) for c, r in zip(chosen, rejected, strict=True)])),
    }


def test_the_gradient_equals_that_of_small_differences(case, pairs: dict[str, Tensor]) -> None:  # type: ignore[no-untyped-def]
    loss, names, _ = case
    constants = chosen_rows(pairs, [name for name in names if name not in POLICY])

    def of_policy(chosen: Tensor, rejected: Tensor) -> Tensor:
        return loss(policy_chosen=chosen, policy_rejected=rejected, **constants).loss

    assert torch.autograd.gradcheck(of_policy, [pairs[name].requires_grad_() for name in POLICY])


def test_parts_add_up_to_the_whole(case, pairs: dict[str, Tensor]) -> None:  # type: ignore[no-untyped-def]
    loss, names, _ = case
    policy = {name: pairs[name].requires_grad_() for name in POLICY}
    whole = loss(**chosen_rows(pairs, names))
    parts = [loss(**chosen_rows(pairs, names, rows)) for rows in (slice(0, 1), slice(1, 1), slice(1, 5), slice(5, 7))]
    assert sum(part.weight.item() for part in parts) == whole.weight.item() == PAIRS
    for name, (total, weight) in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name][0] for part in parts), total)
        torch.testing.assert_close(sum(part.metrics[name][1] for part in parts), weight)
    gradients = torch.autograd.grad(whole.loss, list(policy.values()))
    in_parts = torch.autograd.grad(sum(part.loss for part in parts), list(policy.values()))
    torch.testing.assert_close(gradients, in_parts)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_log_ratios_of_ten_thousand_have_a_finite_loss_and_gradient(case, extreme: float) -> None:  # type: ignore[no-untyped-def]
    loss, names, _ = case
    policy = torch.tensor([min(extreme, 0.0), -3.0]), torch.tensor([-3.0, min(extreme, 0.0)])
    tensors = {name: value.requires_grad_() for name, value in zip(POLICY, policy, strict=True)}
    tensors |= {"ref_chosen": torch.tensor([min(-extreme, 0.0), -3.0]), "ref_rejected": torch.tensor([-3.0, -1e4])}
    tensors |= {name: torch.tensor([1, 3]) for name in LENGTHS}
    tensors |= {"probabilities": torch.tensor([1.0, 0.6]), "margins": torch.tensor([0.0, 2.0])}
    sums = loss(**chosen_rows(tensors, names))
    gradients = torch.autograd.grad(sums.loss, [tensors[name] for name in POLICY])
    assert all(torch.isfinite(value).all() for value in (sums.loss, *gradients))


def test_a_tie_counts_half_in_accuracy(case) -> None:  # type: ignore[no-untyped-def]
    loss, names, _ = case
    tied = {name: torch.full((1,), 4) if name in LENGTHS else torch.full((1,), -2.0) for name in names}
    tied |= {"probabilities": torch.full((1,), 0.7)} if "probabilities" in names else {}
    metrics = mean_metrics(loss(**tied))
    assert metrics["accuracy"] == 0.5
    assert metrics["reward_margin"] == 0


def test_no_pairs_give_zero_that_is_still_attached(case) -> None:  # type: ignore[no-untyped-def]
    loss, names, _ = case
    empty = {name: torch.zeros(0, requires_grad=name in POLICY) for name in names}
    sums = loss(**empty)
    sums.loss.backward()
    assert sums.loss.item() == sums.weight.item() == 0


def test_half_precision_is_compared_in_float32(pairs: dict[str, Tensor]) -> None:
    # 400 has a step of 2 in bfloat16: a difference taken there would lose everything smaller
    tensors = {name: torch.tensor([-400.0], dtype=torch.bfloat16) for name in POLICY}
    sums = dpo_loss(**tensors, ref_chosen=torch.tensor([-400.25]), ref_rejected=torch.tensor([-400.0]), beta=1.0)
    assert mean_metrics(sums)["reward_margin"] == 0.25


def test_tensors_of_different_shapes_are_refused(case, pairs: dict[str, Tensor]) -> None:  # type: ignore[no-untyped-def]
    loss, names, _ = case
    wrong = chosen_rows(pairs, names) | {names[-1]: pairs[names[-1]][:, None]}
    with pytest.raises(ValueError, match=r"must be \[P\]"):
        loss(**wrong)


# --------------------------------------------------------------------------------------------------------- one by one
def test_conservative_dpo_is_smallest_at_the_log_odds_of_the_labels() -> None:
    margins = torch.linspace(-6, 6, 2401)
    zeros = torch.zeros(1)
    losses = [
        dpo_loss(
            policy_chosen=margin[None],
            policy_rejected=zeros,
            ref_chosen=zeros,
            ref_rejected=zeros,
            beta=1.0,
            label_smoothing=0.1,
        ).loss.item()
        for margin in margins
    ]
    assert margins[losses.index(min(losses))].item() == pytest.approx(math.log(9), abs=0.01)


def test_robust_dpo_on_flipped_labels_has_the_expectation_of_dpo_on_true_ones(pairs: dict[str, Tensor]) -> None:
    true = chosen_rows(pairs, POLICY + REFERENCE)
    flipped = {
        name: true[name.replace("chosen", "X").replace("rejected", "chosen").replace("X", "rejected")] for name in true
    }
    clean = dpo_loss(**true, beta=0.3).loss
    kept, wrong = (robust_dpo_loss(**labels, beta=0.3, flip_rate=0.2).loss for labels in (true, flipped))
    torch.testing.assert_close(0.8 * kept + 0.2 * wrong, clean)


@pytest.mark.parametrize("loss", [partial(dpo_loss, beta=0.3, label_smoothing=0.1), partial(ipo_loss, tau=0.2)])
def test_a_certain_soft_label_is_a_hard_one_bit_for_bit_and_so_is_its_opposite(
    loss: Loss, pairs: dict[str, Tensor]
) -> None:
    hard = chosen_rows(pairs, POLICY + REFERENCE)
    policy = [hard[name].requires_grad_() for name in POLICY]
    turned = {TURNED[name]: tensor for name, tensor in hard.items()}
    wanted = loss(**hard).loss
    for soft in (loss(**hard, probabilities=torch.ones(PAIRS)), loss(**turned, probabilities=torch.zeros(PAIRS))):
        assert torch.equal(soft.loss, wanted)
        for found, slope in zip(
            *(torch.autograd.grad(each, policy, retain_graph=True) for each in (soft.loss, wanted)), strict=True
        ):
            assert torch.equal(found, slope)


def test_a_soft_label_of_dpo_is_met_at_its_log_odds_and_one_of_ipo_at_its_share_of_the_target() -> None:
    zeros, soft = torch.zeros(1), torch.tensor([0.8])
    rest = {"policy_rejected": zeros, "ref_chosen": zeros, "ref_rejected": zeros, "probabilities": soft}
    at_odds = torch.tensor([math.log(4)], requires_grad=True)
    assert torch.autograd.grad(dpo_loss(policy_chosen=at_odds, **rest, beta=1.0).loss, at_odds)[0].item() == (
        pytest.approx(0.0, abs=1e-6)
    )
    at_share = torch.tensor([0.6 * 2.5], requires_grad=True)  # (2 q - 1) / (2 * 0.2)
    assert torch.autograd.grad(ipo_loss(policy_chosen=at_share, **rest, tau=0.2).loss, at_share)[0].item() == (
        pytest.approx(0.0, abs=1e-6)
    )


def test_conservative_dpo_is_dpo_on_labels_that_are_all_as_soft(pairs: dict[str, Tensor]) -> None:
    rows = chosen_rows(pairs, POLICY + REFERENCE)
    soft = dpo_loss(**rows, beta=0.3, probabilities=torch.full((PAIRS,), 0.9, dtype=torch.float64))
    torch.testing.assert_close(soft.loss, dpo_loss(**rows, beta=0.3, label_smoothing=0.1).loss)


def test_ipo_stops_at_its_target_margin() -> None:
    zeros = torch.zeros(1)
    policy = torch.tensor([2.5], requires_grad=True)  # 1 / (2 * 0.2)
    sums = ipo_loss(policy_chosen=policy, policy_rejected=zeros, ref_chosen=zeros, ref_rejected=zeros, tau=0.2)
    assert torch.autograd.grad(sums.loss, policy)[0].item() == sums.loss.item() == 0


def test_ipo_refuses_the_lengths_of_one_side_only(pairs: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="both"):
        ipo_loss(**chosen_rows(pairs, POLICY + REFERENCE), tau=0.2, chosen_lengths=pairs["chosen_lengths"])


def test_a_certain_response_has_bounded_odds() -> None:
    policy = torch.zeros(1, requires_grad=True)
    sums = odds_ratio_loss(
        policy_chosen=torch.tensor([-1.0]),
        policy_rejected=policy,
        chosen_lengths=torch.ones(1),
        rejected_lengths=torch.ones(1),
    )
    assert torch.isfinite(torch.autograd.grad(sums.loss, policy)[0]).all()
    assert mean_metrics(sums)["rejected_rewards"] == pytest.approx(math.log(1e6), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kto_equals_a_loop_over_responses(dtype: torch.dtype) -> None:
    policy = torch.tensor([-3.0, -7.0, -12.0, -1.0, -40.0], dtype=dtype, requires_grad=True)
    ref = torch.tensor([-4.0, -5.0, -12.5, -2.0, -10.0], dtype=dtype)
    desirable = torch.tensor([True, False, True, True, False])
    sums = kto_loss(
        policy=policy,
        ref=ref,
        desirable=desirable,
        kl=torch.tensor(0.3),
        beta=0.2,
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    ratio = [1.0, -2.0, 0.5, 1.0, -30.0]
    total = 0.0
    for log_ratio, good in zip(ratio, desirable.tolist(), strict=True):
        value = 1 / (1 + math.exp(-0.2 * (log_ratio - 0.3) * (1 if good else -1)))
        total += (1.5 if good else 0.5) * (1 - value)
    assert sums.loss.item() == pytest.approx(total)
    assert sums.weight.item() == 5
    assert mean_metrics(sums) == {
        "chosen_rewards": pytest.approx(0.2 * 2.5 / 3),
        "rejected_rewards": pytest.approx(0.2 * -16),
    }


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_kto_is_finite_at_extreme_log_ratios(extreme: float) -> None:
    policy = torch.tensor([extreme, extreme], requires_grad=True)
    desirable = torch.tensor([True, False])
    sums = kto_loss(policy=policy, ref=torch.zeros(2), desirable=desirable, kl=0.0, beta=0.1)
    assert sums.loss.item() == 1.0  # one of the two is as wrong as can be, the other as right
    assert torch.isfinite(torch.autograd.grad(sums.loss, policy)[0]).all()


def test_kto_parts_add_up_and_an_absent_kind_has_no_weight() -> None:
    policy, ref = torch.tensor([-3.0, -7.0, -2.0]), torch.tensor([-4.0, -5.0, -2.5])
    desirable = torch.tensor([True, True, False])
    whole = kto_loss(policy=policy, ref=ref, desirable=desirable, kl=0.1, beta=0.2)
    parts = [
        kto_loss(policy=policy[rows], ref=ref[rows], desirable=desirable[rows], kl=0.1, beta=0.2)
        for rows in (slice(0, 2), slice(2, 3))
    ]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss)
    assert parts[0].metrics["rejected_rewards"][1].item() == 0
    assert parts[0].weight.item() + parts[1].weight.item() == whole.weight.item() == 3


def test_the_baseline_of_kto_takes_no_gradient() -> None:
    kl = torch.tensor(0.3, requires_grad=True)
    policy = torch.tensor([-3.0], requires_grad=True)
    desirable = torch.ones(1, dtype=torch.bool)
    kto_loss(policy=policy, ref=torch.zeros(1), desirable=desirable, kl=kl, beta=0.2).loss.backward()
    assert kl.grad is None


def test_kto_refuses_labels_that_are_no_mask() -> None:
    with pytest.raises(ValueError, match="bools"):
        kto_loss(policy=torch.zeros(1), ref=torch.zeros(1), desirable=torch.ones(1), kl=0.0, beta=0.1)


def test_the_likelihood_term_is_added_to_the_loss_and_to_the_metrics(pairs: dict[str, Tensor]) -> None:
    preference = dpo_loss(**chosen_rows(pairs, POLICY + REFERENCE), beta=0.3)
    term = chosen_likelihood_loss(policy_chosen=pairs["policy_chosen"], chosen_lengths=pairs["chosen_lengths"])
    mixed = with_term(preference, term=term, coef=0.7)
    likelihoods = [
        -total / length
        for total, length in zip(pairs["policy_chosen"].tolist(), pairs["chosen_lengths"].tolist(), strict=True)
    ]
    assert mixed.loss.item() == pytest.approx(preference.loss.item() + 0.7 * sum(likelihoods))
    assert mixed.weight.item() == PAIRS
    assert mean_metrics(mixed) == mean_metrics(preference) | {
        "chosen_negative_log_likelihood": pytest.approx(sum(likelihoods) / PAIRS)
    }


def test_a_term_of_other_pairs_is_refused(pairs: dict[str, Tensor]) -> None:
    preference = dpo_loss(**chosen_rows(pairs, POLICY + REFERENCE), beta=0.3)
    term = chosen_likelihood_loss(policy_chosen=pairs["policy_chosen"][1:], chosen_lengths=pairs["chosen_lengths"][1:])
    with pytest.raises(ValueError, match=r"weight of term \(6.0\) must be that of sums \(7.0\)"):
        with_term(preference, term=term, coef=1.0)


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (dpo_loss, {"beta": 0.0}, r"beta \(0.0\) must be above 0"),
        (dpo_loss, {"beta": 0.1, "label_smoothing": 0.5}, r"label_smoothing \(0.5\) must lie in \[0, 0.5\)"),
        (robust_dpo_loss, {"beta": 0.1, "flip_rate": 0.6}, r"flip_rate \(0.6\) must lie in \[0, 0.5\)"),
        (ipo_loss, {"tau": -1.0}, r"tau \(-1.0\) must be above 0"),
    ],
)
def test_a_factor_out_of_range_is_refused(loss: Loss, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(**dict.fromkeys(POLICY + REFERENCE, torch.zeros(1)), **arguments)
