"""Our side of the comparison with TRL's GRPO and RLOO: losses, advantages, weights, log-probabilities of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity_trl_ours import Case, Row, loss_and_gradient, metric, of_model, policy
from rlhf_ray.algo.advantages import GRPO_EPSILON, group_advantages, group_centred
from rlhf_ray.algo.corrections import rollout_weights
from rlhf_ray.algo.kl import kl_loss_terms
from rlhf_ray.algo.losses import Aggregation, LossSums, aggregation_total, aggregation_weights
from rlhf_ray.algo.masked import masked_sum
from rlhf_ray.algo.policy_losses import cispo_loss, gspo_loss, policy_loss, response_loss
from rlhf_ray.algo.rewards import shape_rewards

TRL_EPSILON = 1e-4  # TRL adds this to a group's standard deviation
AGGREGATIONS: dict[str, Aggregation] = {
    "constant": "constant",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "cispo": "token_mean",
}
TITLES = {
    "sequence_mean": "GRPO, clipped, mean over responses of mean over tokens",
    "clip_higher": "GRPO, clip-higher",
    "dual_clip": "GRPO, dual clip (TRL: delta)",
    "constant": "Dr. GRPO, divided by a constant length",
    "bnpo": "BNPO, mean over tokens",
    "dapo": "DAPO, clip-higher, mean over tokens",
    "k3": "GRPO + KL in the loss, k3",
    "k3_unbiased": "GRPO + KL in the loss, k3 weighted by policy / old",
    "gspo": "GSPO, ratio of the sequence",
    "cispo": "CISPO",
}


def policy_tensors(case: Case, logprobs: Tensor) -> dict[str, Tensor]:
    advantages = case.given["policy.advantages"][:, None].expand_as(logprobs)
    mask = case.given["policy.response_mask"]
    return {"logprobs": logprobs, "old_logprobs": case.given["policy.old_logprobs"], "response_mask": mask} | {
        "advantages": advantages
    }


def surrogate(name: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor], **weights: Tensor) -> LossSums:
    bounds: dict[str, Any] = {"clip_ratio": options.get("epsilon", 0.2), "clip_ratio_high": options.get("epsilon_high")}
    if name == "gspo":
        return gspo_loss(**tensors, **bounds, **weights)
    if name == "cispo":
        return cispo_loss(**tensors, clip_ratio=1.0, clip_ratio_high=options["epsilon_high"] - 1, **weights)
    return policy_loss(**tensors, **bounds, dual_clip=options.get("delta", 0.0), **weights)


def group_losses(case: Case) -> Iterator[Row]:
    mask = case.given["policy.response_mask"]
    for name, options in case.settings["grpo"].items():
        logprobs = case.given["policy.logprobs"].clone().requires_grad_()
        tensors = policy_tensors(case, logprobs)
        aggregation = AGGREGATIONS.get(name, "sequence_mean")
        weights = aggregation_weights(response_mask=mask, aggregation=aggregation)
        total = aggregation_total(
            aggregation=aggregation,
            num_tokens=int(mask.sum()),
            num_sequences=mask.shape[0],
            constant=mask.shape[1],
        )
        sums = surrogate(name, options, tensors, token_weights=weights)
        loss = sums.loss / total
        key = f"grpo.{name}"
        if options["beta"]:
            terms = kl_loss_terms(
                logprobs=logprobs,
                old_logprobs=case.given["policy.old_logprobs"],
                ref_logprobs=case.given["policy.ref_logprobs"],
                estimator=name,
                response_mask=mask,
            )
            loss = loss + options["beta"] * masked_sum(values=weights * terms, mask=mask) / total
            kl = masked_sum(values=terms.detach(), mask=mask) / mask.sum()
            yield Row(f"{TITLES[name]}: KL", f"{key}.kl", kl)
        note = {"cispo": "no lower bound there: clip_ratio 1 here"}.get(name, "")
        yield from loss_and_gradient(TITLES[name], key, loss, logprobs, note)
        yield clipped_share(name, options, tensors, sums)


def clipped_share(name: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor], sums: LossSums) -> Row:
    theirs = "cispo_clip_ratio" if name == "cispo" else "clip_ratio/region_mean"
    title, key = f"{TITLES[name]}: {theirs}", f"grpo.{name}.{theirs}"
    if name not in ("gspo", "cispo"):
        return Row(title, key, metric(sums, "clip_fraction"))
    rows = range(len(tensors["logprobs"]))
    alone = [surrogate(name, options, {k: t[i : i + 1] for k, t in tensors.items()}) for i in rows]
    if name == "gspo":
        shares = torch.stack([metric(row, "clip_fraction") for row in alone])
        return Row(title, key, shares.mean(), "of sequences there, of tokens here: rows counted once")
    positive = tensors["advantages"][:, 0] > 0
    clipped = torch.stack([row.metrics["clip_fraction"][0] for row in alone])
    return Row(
        title, key, (clipped * positive).sum() / sums.weight, "positive advantages only there: only those counted"
    )


def leave_one_out_loss(case: Case) -> Iterator[Row]:
    mask = case.given["policy.response_mask"]
    logprobs = case.given["policy.logprobs"].clone().requires_grad_()
    tensors = policy_tensors(case, logprobs)
    sums = response_loss(**tensors, clip_ratio=0.2)
    once = response_loss(**tensors, clip_ratio=0.2, token_weights=1 / mask.sum(-1, keepdim=True).expand_as(logprobs))
    note = "a response's term once a token here: each weighted by 1 / length in the loss, not in the gradient"
    yield Row("RLOO loss", "rloo.loss", once.loss.detach() / len(mask), note)
    yield Row("RLOO loss: gradient", "rloo.gradient", torch.autograd.grad(sums.loss / len(mask), logprobs)[0], note)
    alone = [response_loss(**{k: t[i : i + 1] for k, t in tensors.items()}, clip_ratio=0.2) for i in range(len(mask))]
    shares = torch.stack([metric(row, "clip_fraction") for row in alone])
    yield Row(
        "RLOO loss: clip_ratio/region_mean",
        "rloo.clip_ratio/region_mean",
        shares.mean(),
        "of sequences there, of tokens here: rows counted once",
    )


def advantages(case: Case) -> Iterator[Row]:
    given, lengths = case.given, case.given["policy.lengths"]
    totals = given["policy.totals"]
    groups = torch.arange(len(totals)) // case.settings["group_size"]
    common = {"groups": groups, "lengths": lengths}
    standard = group_advantages(totals=totals, estimator="grpo", **common)
    centred = group_centred(totals=totals, groups=groups)
    # (r - mean) / (std + ours) -> (r - mean) / (std + theirs)
    std = torch.where(standard != 0, centred / standard - GRPO_EPSILON, 0.0)
    note = f"epsilon {GRPO_EPSILON:g} here, {TRL_EPSILON:g} there: converted; float32 there"
    yield Row("GRPO advantages", "advantages.group", centred / (std + TRL_EPSILON), note)
    dr_grpo = group_advantages(totals=totals, estimator="dr_grpo", **common)
    yield Row("Dr. GRPO advantages", "advantages.none", dr_grpo, "float32 there")

    within = torch.arange(given["policy.logprobs"].shape[1]) < lengths[:, None]
    shaped = shape_rewards(
        scores=totals,
        logprobs=given["policy.old_logprobs"],
        ref_logprobs=given["policy.ref_logprobs"],
        response_mask=within,
        kl_coef=case.settings["rloo"]["beta"],
    )
    rloo = group_advantages(totals=shaped.sum(-1), estimator="rloo", **common)
    yield Row("RLOO advantages, KL in the reward", "advantages.rloo", rloo, "rewards in float32 there")


def engine_weights(case: Case) -> Iterator[Row]:
    lengths = case.given["policy.lengths"]
    within = torch.arange(case.given["policy.logprobs"].shape[1]) < lengths[:, None]
    for name, (low, high) in case.settings["rollout_weights"].items():
        level, mode = name.split("_")
        weights = rollout_weights(
            old_logprobs=case.given["policy.old_logprobs"],
            rollout_logprobs=case.given["policy.rollout_logprobs"],
            response_mask=within,
            level=level,
            mode=mode,
            low=low or 0.0,
            high=high,
        ).weights
        title = f"weights trainer / engine, {level}, {mode}"
        note = "log-probabilities of the engine in float32 there"
        if level == "token":
            yield Row(title, f"weights.{name}", weights, note, where=within)
        else:
            yield Row(title, f"weights.{name}", weights[:, :1], note)


def models(case: Case) -> Iterator[Row]:
    model, ids = policy(case, "policy"), case.given["sequences.ids"]
    width = int(case.given["padded.response_width"])
    ours = torch.zeros(2, len(ids), width)
    prompts, lengths = case.given["sequences.prompts"].tolist(), case.given["sequences.lengths"].tolist()
    with torch.no_grad():
        for i, (start, end) in enumerate(zip(prompts, lengths, strict=True)):
            of_tokens = torch.stack(of_model(model, ids[i, :end], case.settings["temperature"]))
            ours[:, i, : end - start] = of_tokens[:, start:]
    note = "prompts are padded left there, nothing is padded left here"
    yield Row("log-probabilities of a tiny model", "models.logprobs", ours[0], note)
    yield Row("entropies of a tiny model", "models.entropy", ours[1], note)


POLICY: tuple[Callable[[Case], Iterator[Row]], ...] = (
    models,
    group_losses,
    leave_one_out_loss,
    advantages,
    engine_weights,
)
