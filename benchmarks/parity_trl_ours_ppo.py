"""Our side of the comparison with TRL's PPO: the step that TRL took, computed again from what it sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.parity_trl_inputs import EOS, VOCABULARY
from benchmarks.parity_trl_ours import Case, Row, metric, of_model, policy
from rlhf_ray.algo.advantages import gae
from rlhf_ray.algo.kl import kl_estimate
from rlhf_ray.algo.logprobs import entropy
from rlhf_ray.algo.losses import value_loss
from rlhf_ray.algo.masked import masked_mean, masked_sum, mean_and_variance, moments, whiten
from rlhf_ray.algo.policy_losses import policy_loss
from rlhf_ray.algo.rewards import penalise_missing_eos, shape_rewards, whiten_rewards

PAD = VOCABULARY  # that of the PPO run lies outside the models' vocabulary
ONE_STATE_MORE = "one more state a response there, after EOS, and the score in it: ours on that mask"
OVER_PADDING = "mean over padding too there, where it is {}: ours counted likewise"


def whitened(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    mean, variance = mean_and_variance(moments(values=values, mask=mask))
    return whiten(values=values, mask=mask, mean=mean, variance=variance, shift_mean=shift_mean)


def whitening(case: Case) -> Iterator[Row]:
    values, mask = case.given["policy.logprobs"], case.given["policy.response_mask"]
    note = "0 outside the mask here, any number there; n / (n - 1) in float32 there"
    yield Row("masked whitening", "whiten.shifted", whitened(values, mask), note, where=mask)
    kept = whitened(values, mask, shift_mean=False)
    yield Row("masked whitening, mean kept", "whiten.kept", kept, note, where=mask)


def step(case: Case, run: str) -> dict[str, Tensor]:
    prefix = f"ppo.{run}."
    return {key.removeprefix(prefix): value for key, value in case.said.items() if key.startswith(prefix)}


def experience(case: Case) -> Iterator[Row]:
    """From token ids to advantages, once with KL estimate k1 and once with k3 and whitened rewards."""
    for run, options in case.settings["ppo"].items():
        said, title, key = step(case, run), f"PPO ({run})", f"ppo.{run}"
        tokens, states = ~said["padding_mask"], ~said["padding_mask_p1"]
        yield Row(f"{title}: sampled tokens, EOS included", f"{key}.padding_mask", 1 - until_eos(said["responses"]))
        yield from sampled(case, said, title, key)
        scores = penalise_missing_eos(
            scores=said["raw_scores"], finished=said["contain_eos_token"], penalty=options["missing_eos_penalty"]
        )
        yield Row(f"{title}: scores, penalty for a missing EOS", f"{key}.scores", scores)

        def rewards(mask: Tensor, options=options, said=said, scores=scores) -> Tensor:  # type: ignore[no-untyped-def]
            return shape_rewards(
                scores=scores,
                logprobs=said["logprobs"],
                ref_logprobs=said["ref_logprobs"],
                response_mask=mask,
                kl_coef=options["kl_coef"],
                estimator=options["kl_estimator"],
            )

        shaped = rewards(states)
        raw = "rewards_before" if options.get("whiten_rewards") else "rewards"
        yield Row(f"{title}: rewards per token", f"{key}.{raw}", shaped, ONE_STATE_MORE, where=states)
        note = "the score on the last token here, one later there: sums compared"
        sums = rewards(tokens).sum(-1)
        yield Row(f"{title}: sum of rewards", f"{key}.{raw}", sums, note, taken=lambda theirs: theirs.sum(-1))
        if options.get("whiten_rewards"):
            mean, variance = mean_and_variance(moments(values=shaped, mask=states))
            shaped = whiten_rewards(rewards=shaped, response_mask=states, mean=mean, variance=variance)
            yield Row(f"{title}: whitened rewards", f"{key}.rewards", shaped, ONE_STATE_MORE, where=states)
        yield from estimated(said, title, key, shaped, options)


def until_eos(responses: Tensor) -> Tensor:
    """1 up to and with the first EOS of each row [B, S], 0 after it."""
    ends = (responses == EOS).long()
    return (ends.cumsum(-1) - ends == 0).long()


def sampled(case: Case, said: Mapping[str, Tensor], title: str, key: str) -> Iterator[Row]:
    """Log-probabilities of what was sampled, from token ids, by the policy before its first update."""
    options = case.settings["ppo"]["k1"]
    tokens = ~said["padding_mask"]
    for name, weights in (("logprobs", "policy"), ("ref_logprobs", "reference")):
        model, ours = policy(case, weights), torch.zeros_like(said["logprobs"])
        for i, ids in enumerate(said["query_responses"]):
            response = int(tokens[i].sum())
            whole = ids[: ids.shape[0] - tokens.shape[1] + response]
            whole = whole[whole != PAD]
            with torch.no_grad():
                ours[i, :response] = of_model(model, whole, options["temperature"])[0][len(whole) - response :]
        note = "temperature + 1e-7 there, prompts padded left"
        yield Row(f"{title}: {name} from token ids", f"{key}.{name}", ours, note, where=tokens)
    kl = kl_estimate(logprobs=said["logprobs"], ref_logprobs=said["ref_logprobs"], estimator=key.removeprefix("ppo."))
    of_responses = masked_sum(values=kl, mask=tokens, dim=-1).mean()
    yield Row(f"{title}: objective/kl", f"{key}.objective/kl", of_responses)
    surprise = masked_sum(values=-said["logprobs"], mask=tokens, dim=-1).mean()
    yield Row(f"{title}: objective/entropy", f"{key}.objective/entropy", surprise)


def estimated(
    said: Mapping[str, Tensor], title: str, key: str, rewards: Tensor, options: Mapping[str, float]
) -> Iterator[Row]:
    tokens, states = ~said["padding_mask"], ~said["padding_mask_p1"]
    advantages, returns = gae(
        rewards=rewards,
        values=said["values"],
        response_mask=states,
        gamma=options["gamma"],
        lam=options["lam"],
    )
    yield Row(f"{title}: GAE advantages", f"{key}.advantages", advantages, ONE_STATE_MORE, where=states)
    yield Row(f"{title}: returns", f"{key}.returns", returns, ONE_STATE_MORE, where=states)
    yield Row(f"{title}: whitened advantages", f"{key}.whitened_advantages", whitened(advantages, tokens), where=tokens)


def updates(case: Case) -> Iterator[Row]:
    """Losses, their gradients and metrics over two epochs of two minibatches, from what each minibatch held."""
    for run, options in case.settings["ppo"].items():
        said, title, key = step(case, run), f"PPO ({run})", f"ppo.{run}"
        found: dict[str, list[Tensor]] = {}
        for index in range(len(said["new_logprobs"])):
            batch = {name: value[index] for name, value in said.items() if value.ndim > 2}
            for name, value in {**policy_update(batch, options), **value_update(batch, options)}.items():
                found.setdefault(name, []).append(value)
        notes = {
            "policy/approxkl_avg": f"k2 there, k1 and k3 here: `kl_estimate` k2. {OVER_PADDING.format(0)}",
            "val/ratio": OVER_PADDING.format(1),
            "policy/entropy_avg": "mean over padding too there: ours counted likewise",
        }
        values_note = "one more state a response there, after EOS: ours on that mask"
        notes |= dict.fromkeys(("loss/value_avg", "val/clipfrac_avg", "value_gradient"), values_note)
        for name, values in found.items():
            whole = torch.stack(values)
            ours = whole if name.endswith("gradient") else whole.mean()
            yield Row(f"{title}: {name}", f"{key}.{name}", ours, notes.get(name, ""))


def policy_update(batch: Mapping[str, Tensor], options: Mapping[str, float]) -> dict[str, Tensor]:
    tokens = ~batch["mb_padding_mask"]
    logprobs = batch["new_logprobs"].clone().requires_grad_()
    sums = policy_loss(
        logprobs=logprobs,
        old_logprobs=batch["mb_logprobs"],
        advantages=batch["mb_advantage"],
        response_mask=tokens,
        clip_ratio=options["cliprange"],
    )
    loss = sums.loss / sums.weight
    kl = kl_estimate(logprobs=batch["new_logprobs"], ref_logprobs=batch["mb_logprobs"], estimator="k2")
    padding = (~tokens).sum()
    logits = batch["logits"].flatten(0, 1)
    return {
        "loss/policy_avg": loss.detach(),
        "policy_gradient": torch.autograd.grad(loss, logprobs)[0],
        "policy/clipfrac_avg": metric(sums, "clip_fraction"),
        "policy/approxkl_avg": masked_sum(values=kl, mask=tokens) / tokens.numel(),
        "val/ratio": (sums.metrics["ratio"][0] + padding) / tokens.numel(),
        "policy/entropy_avg": masked_mean(values=entropy(logits=logits), mask=torch.ones(len(logits)).bool()),
    }


def value_update(batch: Mapping[str, Tensor], options: Mapping[str, float]) -> dict[str, Tensor]:
    values = batch["vpred"].clone().requires_grad_()
    sums = value_loss(
        values=values,
        old_values=batch["mb_values"],
        returns=batch["mb_return"],
        response_mask=~batch["mb_padding_mask_p1"],
        value_clip=options["cliprange_value"],
    )
    loss = sums.loss / sums.weight
    return {
        "loss/value_avg": loss.detach(),
        "value_gradient": torch.autograd.grad(loss, values)[0],
        "val/clipfrac_avg": metric(sums, "value_clip_fraction"),
    }


PPO: tuple[Callable[[Case], Iterator[Row]], ...] = (whitening, experience, updates)
