"""Our side of the comparison: log-probabilities, SFT, ranking and preference losses, from rlhf_ray/algo.

``parity_trl_ours_policy.py`` and ``parity_trl_ours_ppo.py`` hold the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_ray.algo.logprobs import entropy, token_logprobs
from rlhf_ray.algo.losses import (
    LossSums,
    bradley_terry_loss,
    language_modelling_loss,
)
from rlhf_ray.algo.masked import masked_sum
from rlhf_ray.algo.preference import (
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
)


@dataclass(frozen=True)
class Case:
    """What both sides were given, and what TRL said."""

    given: Mapping[str, Tensor]
    said: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Row:
    """One line of the table before TRL's answer is put beside it."""

    quantity: str
    key: str  # of TRL's answer
    ours: Tensor
    deliberate: str = ""  # what we define differently, and what was done about it before comparing
    where: Tensor | None = None  # compared where True; everywhere if None
    taken: Callable[[Tensor], Tensor] | None = None  # what is compared of TRL's answer; all of it if None


def mean(sums: LossSums) -> Tensor:
    return sums.loss / sums.weight


def metric(sums: LossSums, name: str) -> Tensor:
    total, weight = sums.metrics[name]
    return total / weight


def loss_and_gradient(quantity: str, key: str, loss: Tensor, leaf: Tensor, deliberate: str = "") -> Iterator[Row]:
    gradient = torch.autograd.grad(loss, leaf)[0]
    yield Row(quantity, f"{key}.loss", loss, deliberate)
    yield Row(f"{quantity}: gradient", f"{key}.gradient", gradient, deliberate)


# --------------------------------------------------------------------------------------------------------------- tokens
def tokens(case: Case) -> Iterator[Row]:
    logits = case.given["tokens.logits"].clone().requires_grad_()
    temperature = case.settings["temperature"]
    logprobs = token_logprobs(logits=logits, targets=case.given["tokens.targets"], temperature=temperature)
    yield Row(f"token log-probabilities, temperature {temperature}", "tokens.logprobs", logprobs)
    gradient = torch.autograd.grad(logprobs.square().sum(), logits)[0]
    yield Row("token log-probabilities: gradient", "tokens.logprobs.gradient", gradient)
    yield Row("entropy", "tokens.entropy", entropy(logits=logits.detach(), temperature=temperature))


def policy(case: Case, name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(case.folder / name, dtype=torch.float32)


def of_model(model: Any, ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [S] of the tokens of one sequence without padding; 0 for the first."""
    logits = model(input_ids=ids[None]).logits[0, :-1]
    logprobs = token_logprobs(logits=logits, targets=ids[1:], temperature=temperature)
    entropies = entropy(logits=logits.detach(), temperature=temperature)
    return torch.nn.functional.pad(logprobs, (1, 0)), torch.nn.functional.pad(entropies, (1, 0))


def sequences(case: Case, model: Any) -> Tensor:
    """Log-probabilities [B, S] of the given sequences."""
    ids, lengths = case.given["sequences.ids"], case.given["sequences.lengths"].tolist()
    rows = [of_model(model, ids[i, :n])[0] for i, n in enumerate(lengths)]
    return torch.stack([torch.nn.functional.pad(row, (0, ids.shape[1] - len(row))) for row in rows])


def supervised(case: Case) -> Iterator[Row]:
    model = policy(case, "policy")
    loss = mean(language_modelling_loss(logprobs=sequences(case, model), mask=case.given["sequences.response_mask"]))
    note = "one micro-batch here, two unequal ones there"
    yield from loss_and_gradient(
        "SFT, responses only, mean over tokens", "sft", loss, model.get_input_embeddings().weight, note
    )


def ranking(case: Case) -> Iterator[Row]:
    for name in ("plain", "margin", "centered"):
        scores = torch.cat([case.given["ranking.chosen"], case.given["ranking.rejected"]]).requires_grad_()
        chosen, rejected = scores.chunk(2)
        sums = bradley_terry_loss(
            chosen_scores=chosen,
            rejected_scores=rejected,
            margins=None if name == "plain" else case.given["ranking.margins"],
            centering=case.settings["centering"] if name == "centered" else 0.0,
        )
        yield from loss_and_gradient(f"Bradley-Terry, {name}", f"ranking.{name}", mean(sums), scores)
        ties = (chosen == rejected).double().mean()
        note = "a tie counts half here, nothing there: half the ties taken off"
        yield Row(
            f"Bradley-Terry, {name}: accuracy", f"ranking.{name}.accuracy", metric(sums, "accuracy") - ties / 2, note
        )


# ---------------------------------------------------------------------------------------------------------- preferences
def direct_preferences(case: Case) -> Iterator[Row]:
    mask = case.given["pairs.response_mask"][:, 1:]
    lengths = dict(zip(("chosen_lengths", "rejected_lengths"), case.given["pairs.lengths"].chunk(2), strict=True))
    for name, options in case.settings["dpo"].items():
        logprobs = case.given["pairs.logprobs"].clone().requires_grad_()
        pairs = pair_sums(case, masked_sum(values=logprobs, mask=mask, dim=-1))
        loss, sums, note = direct_preference(name, options, pairs, lengths)
        if name == "likelihood":
            chosen, chosen_mask = logprobs.chunk(2)[0], mask.chunk(2)[0]
            term = language_modelling_loss(logprobs=chosen, mask=chosen_mask)
            loss = loss + options["loss_weights"][1] * mean(term)
            note = "mean over tokens there, over responses in `chosen_likelihood_loss`: `language_modelling_loss` taken"
        title = {"likelihood": "DPO + likelihood of chosen (RPO)"}.get(name, f"DPO, {name}")
        yield from loss_and_gradient(title, f"dpo.{name}", loss, logprobs, note)
        names = {"rewards/chosen": "chosen_rewards", "rewards/rejected": "rejected_rewards"}
        names |= {"rewards/margins": "reward_margin", "rewards/accuracies": "accuracy"}
        note = "of sums there and of mean tokens here: ours without lengths" if name == "ipo" else ""
        for theirs, ours in names.items():
            yield Row(f"{title}: {theirs}", f"dpo.{name}.{theirs}", metric(sums, ours), note)


def pair_sums(case: Case, totals: Tensor) -> dict[str, Tensor]:
    policy_chosen, policy_rejected = totals.chunk(2)
    references = {name: case.given[f"pairs.{name}"] for name in ("ref_chosen", "ref_rejected")}
    return {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected} | references


def direct_preference(
    name: str, options: Mapping[str, Any], pairs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]
) -> tuple[Tensor, LossSums, str]:
    """The mean loss, the sums whose metrics are compared, and a note."""
    beta = options["beta"]
    if name == "ipo":
        return (
            mean(ipo_loss(**pairs, tau=beta, **lengths)),
            ipo_loss(**pairs, tau=beta),
            "averaged over tokens there: ours with lengths",
        )
    if name == "hinge":
        sums = hinge_loss(**pairs, beta=beta)
    elif name == "robust":
        sums = robust_dpo_loss(**pairs, beta=beta, flip_rate=options["label_smoothing"])
    else:
        sums = dpo_loss(**pairs, beta=beta)
    return mean(sums), sums, ""


def direct_preferences_of_models(case: Case) -> Iterator[Row]:
    trained, mask = policy(case, "policy"), case.given["sequences.response_mask"]
    with torch.no_grad():
        reference = masked_sum(values=sequences(case, policy(case, "reference")), mask=mask, dim=-1).chunk(2)
    totals = masked_sum(values=sequences(case, trained), mask=mask, dim=-1).chunk(2)
    sums = dpo_loss(
        policy_chosen=totals[0],
        policy_rejected=totals[1],
        ref_chosen=reference[0],
        ref_rejected=reference[1],
        beta=case.settings["dpo"]["sigmoid"]["beta"],
    )
    yield from loss_and_gradient(
        "DPO, sigmoid, from token ids", "dpo.models", mean(sums), trained.get_input_embeddings().weight
    )


def each(loss: Callable[..., LossSums], pairs: Mapping[str, Tensor]) -> Tensor:
    """The loss of each pair alone."""
    count = len(next(iter(pairs.values())))
    return torch.stack([loss(**{name: tensor[p : p + 1] for name, tensor in pairs.items()}).loss for p in range(count)])


def reference_free_preferences(case: Case) -> Iterator[Row]:
    totals = {f"policy_{kind}": case.given[f"pairs.{kind}"] for kind in ("chosen", "rejected")}
    references = {f"ref_{kind}": case.given[f"pairs.ref_{kind}"] for kind in ("chosen", "rejected")}
    lengths = dict(zip(("chosen_lengths", "rejected_lengths"), case.given["pairs.lengths"].chunk(2), strict=True))
    smoothed = each(lambda **p: dpo_loss(**p, **case.settings["conservative"]), totals | references)
    note = "TRL's DPO has no smoothing: its CPO, given log-ratios to the reference"
    yield Row("DPO with label smoothing, per pair", "conservative.loss", smoothed, note)
    simpo = each(lambda **p: simpo_loss(**p, **case.settings["simpo"]), totals | lengths)
    yield Row("SimPO, per pair", "simpo.loss", simpo)
    odds = each(odds_ratio_loss, totals | lengths)
    note = "TRL computes in float32"
    yield Row("ORPO's odds ratio, per pair", "odds_ratio.loss", -odds, f"negated; {note}")
    margin = metric(odds_ratio_loss(**totals, **lengths), "reward_margin")
    yield Row("ORPO: log odds ratio", "odds_ratio.margin", margin, note)


def unpaired_preferences(case: Case) -> Iterator[Row]:
    given = case.given
    logprobs = given["kto.logprobs"].clone().requires_grad_()
    kl = (given["kto.kl_logprobs"].sum(-1) - given["kto.kl_ref"]).mean().clamp(min=0)
    sums = kto_loss(
        policy=logprobs.sum(-1),
        ref=given["kto.ref"],
        desirable=given["kto.desirable"],
        kl=kl,
        **case.settings["kto"],
    )
    yield from loss_and_gradient("KTO", "kto", mean(sums), logprobs, "the baseline is passed in here")
    yield Row("KTO: rewards/chosen", "kto.rewards/chosen", metric(sums, "chosen_rewards"))
    yield Row("KTO: rewards/rejected", "kto.rewards/rejected", metric(sums, "rejected_rewards"))


PREFERENCES: tuple[Callable[[Case], Iterator[Row]], ...] = (
    tokens,
    supervised,
    ranking,
    direct_preferences,
    direct_preferences_of_models,
    reference_free_preferences,
    unpaired_preferences,
)
