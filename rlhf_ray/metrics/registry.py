"""Every number a run may log, with its unit and its definition. A name that is not in the table cannot be logged.

Add a metric by adding a line. A name that ends in ``/*`` stands for a family whose last part a task decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rlhf_ray.errors import RlhfError

Better: TypeAlias = Literal["higher", "lower", ""]


class UnknownMetricError(RlhfError):
    """A metric was logged whose name has no definition."""


@dataclass(frozen=True)
class MetricDefinition:
    """What a number means. ``better`` is empty where neither direction is good by itself.

    ``short`` is the label in the console's line for a step; a metric without one is not on that line.
    """

    name: str
    unit: str
    definition: str
    better: Better = ""
    short: str = ""


def describe(name: str) -> MetricDefinition:
    """Return the definition of ``name``.

    Raises:
        UnknownMetricError: nothing in the registry has this name; the message suggests the nearest one.
    """
    family, _, member = name.rpartition("/")
    found = REGISTRY.get(name) or (REGISTRY.get(f"{family}/*") if member else None)
    if found is not None:
        return found
    nearest = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.0)[0]
    raise UnknownMetricError(
        f"metric {name!r} has no definition; did you mean {nearest!r}? A new metric is a line in "
        "rlhf_ray/metrics/registry.py"
    )


def require_registered(names: Iterable[str]) -> None:
    """Raise UnknownMetricError for the first of ``names`` that has no definition."""
    for name in names:
        describe(name)


_M = MetricDefinition

_SFT = (
    _M("sft/loss", "nats/token", "Negative log-likelihood per response token of the step's batch.", "lower", "loss"),
    _M(
        "sft/heldout_loss",
        "nats/token",
        "Negative log-likelihood per response token of the held-out demonstrations.",
        "lower",
        "held-out",
    ),
    _M("sft/learning_rate", "", "Learning rate of the step's optimizer update.", "", "lr"),
    _M("sft/grad_norm", "", "Global L2 norm of the gradient before clipping.", "", "grad"),
    _M("sft/tokens_per_second", "tokens/s", "Tokens trained on (prompt and response) per second.", "higher", "tok/s"),
    _M("sft/padding_fraction", "fraction", "Share of the batch's positions that hold padding.", "lower"),
)

_REWARD_MODEL = (
    _M("reward_model/loss", "nats/pair", "Mean of -log sigmoid(r_chosen - r_rejected) over pairs.", "lower", "loss"),
    _M("reward_model/accuracy", "fraction", "Share of the step's pairs with r_chosen > r_rejected.", "higher", "acc"),
    _M(
        "reward_model/heldout_loss",
        "nats/pair",
        "Mean of -log sigmoid(r_chosen - r_rejected) over the held-out pairs.",
        "lower",
        "held-out loss",
    ),
    _M(
        "reward_model/heldout_accuracy",
        "fraction",
        "Share of the held-out pairs with r_chosen > r_rejected.",
        "higher",
        "held-out acc",
    ),
    _M("reward_model/margin", "reward", "Mean of r_chosen - r_rejected over the step's pairs.", "higher", "margin"),
    _M("reward_model/learning_rate", "", "Learning rate of the step's optimizer update.", "", "lr"),
    _M("reward_model/grad_norm", "", "Global L2 norm of the gradient before clipping.", "", "grad"),
    _M("reward_model/tokens_per_second", "tokens/s", "Tokens trained on per second.", "higher"),
)

_DPO = (
    _M(
        "dpo/loss",
        "",
        "Mean of the preference loss over the step's rankings (KTO: over labelled responses).",
        "lower",
        "loss",
    ),
    _M(
        "dpo/accuracy",
        "fraction",
        "Share of the step's pairs in which the chosen response has the higher implicit reward; a tie is a half.",
        "higher",
        "acc",
    ),
    _M(
        "dpo/reward_margin",
        "reward",
        "Mean implicit reward of chosen minus that of rejected responses.",
        "higher",
        "margin",
    ),
    _M("dpo/chosen_rewards", "reward", "Mean implicit reward of chosen (KTO: desirable) responses."),
    _M("dpo/rejected_rewards", "reward", "Mean implicit reward of rejected (KTO: undesirable) responses."),
    _M(
        "dpo/chosen_negative_log_likelihood",
        "nats/token",
        "Mean over pairs of the chosen response's negative log-likelihood a token; a rise says that DPO unlearns them.",
        "lower",
    ),
    _M("dpo/kto_baseline", "nats", "KTO: the mean log-ratio of responses to other prompts, cut at 0 from below."),
    _M("dpo_heldout/*", "", "The measure of this name on held-out rankings; step 0 is before training."),
    _M("dpo/learning_rate", "", "Learning rate of the step's optimizer update.", "", "lr"),
    _M("dpo/grad_norm", "", "Global L2 norm of the gradient before clipping.", "", "grad"),
)

_PPO_REWARD = (
    _M(
        "ppo/score_mean",
        "reward",
        "Mean score of a response, the weighted sum of its reward sources, before any shaping.",
        "higher",
        "score",
    ),
    _M("ppo/score_std", "reward", "Standard deviation of that score over the step's responses."),
    _M("reward/*", "reward", "Mean of what the reward source of this name says of a response, before its weight."),
    _M(
        "ppo/reward_mean",
        "reward",
        "Mean over responses of the sum of shaped rewards (score and KL penalty).",
        "higher",
    ),
    _M("ppo/kl_per_token", "nats/token", "KL(policy || reference): summed over the step's tokens, divided by them."),
    _M(
        "ppo/kl_per_response",
        "nats/response",
        "KL(policy || reference) summed over a response, mean of responses.",
        "",
        "kl",
    ),
    _M("ppo/kl_coef", "reward/nat", "Weight of the KL penalty in the reward of this step."),
    _M("ppo/response_length", "tokens", "Mean number of sampled tokens in a response, EOS included.", "", "len"),
    _M(
        "ppo/finished_fraction",
        "fraction",
        "Share of responses that ended with a stop token, not at the limit.",
        "higher",
        "fin",
    ),
)

_PPO_UPDATE = (
    _M(
        "ppo/policy_loss",
        "",
        "Clipped surrogate loss of PPO per response token, mean over the step's updates.",
        "lower",
    ),
    _M("ppo/value_loss", "reward^2", "Clipped squared error of the critic per response token.", "lower"),
    _M("ppo/clip_fraction", "fraction", "Share of tokens whose ratio the surrogate clipped.", "", "clip"),
    _M("ppo/dual_clip_fraction", "fraction", "Share of tokens whose loss the dual clip bounded (advantage below 0)."),
    _M("ppo/kl_k3", "nats/token", "KL from policy to reference, estimated as r - 1 - log r (never negative)."),
    _M("ppo/kl_exact", "nats/token", "KL from policy to reference from whole distributions at the sampled tokens."),
    _M("ppo/kl_loss", "nats/token", "KL term of the loss per sampled token, before its coefficient."),
    _M(
        "ppo/kl_clamped_fraction",
        "fraction",
        "Share of tokens whose log-ratio to the reference was cut at 20.",
        "lower",
    ),
    _M("ppo/first_kl", "nats/token", "KL from old to new policy before the step's first update: 0 but for rounding."),
    _M("ppo/reference_kl_at_start", "nats/token", "KL from policy to reference before anything was learned: 0."),
    _M("ppo/rollout_weight_mean", "", "Mean importance weight, trainer over engine; 1 on policy."),
    _M("ppo/rollout_weight_max", "", "Largest importance weight, trainer over engine."),
    _M("ppo/rollout_cut_fraction", "fraction", "Share of sampled tokens whose importance weight is out of bounds."),
    _M("ppo/rollout_above_2", "fraction", "Share of sampled tokens with an importance weight above 2."),
    _M("ppo/rollout_above_10", "fraction", "Share of sampled tokens with an importance weight above 10."),
    _M("ppo/effective_sample_size", "fraction", "(sum w)^2 / (n sum w^2) of the importance weights; 1 on policy."),
    _M("ppo/failed_fraction", "fraction", "Share of the step's rollouts that could not be scored.", "lower"),
    _M("ppo/trained_fraction", "fraction", "Share of the step's rollouts that were trained on."),
    _M("ppo/skipped_steps", "", "Steps of the run so far that bad numbers ended and that were skipped.", "lower"),
    _M("ppo/sampling_rounds", "", "Rounds of sampling until there were enough groups with a signal."),
    _M("ppo/value_clip_fraction", "fraction", "Share of tokens whose value the critic's clip limited."),
    _M("ppo/approx_kl", "nats/token", "KL(old policy || policy) by mean of ratio - 1 - log ratio, over updates."),
    _M("ppo/ratio_max", "", "Largest ratio of new to old probability of any sampled token in the step.", "lower"),
    _M(
        "ppo/entropy",
        "nats/token",
        "Mean entropy of the policy's next-token distribution on sampled tokens.",
        "",
        "ent",
    ),
    _M(
        "ppo/explained_variance",
        "fraction",
        "1 - Var(returns - values) / Var(returns), before the update.",
        "higher",
        "ev",
    ),
    _M("ppo/advantage_std", "reward", "Standard deviation of the advantages before whitening."),
    _M(
        "ppo/logprob_difference",
        "nats/token",
        "Mean |engine - trainer| log-probability of sampled tokens, same weights.",
        "lower",
    ),
    _M(
        "ppo/logprob_difference_max",
        "nats",
        "Largest |engine - trainer| log-probability of any sampled token.",
        "lower",
    ),
    _M("ppo/policy_grad_norm", "", "Global L2 norm of the policy's gradient before clipping, mean of updates."),
    _M("ppo/critic_grad_norm", "", "Global L2 norm of the critic's gradient before clipping, mean of updates."),
    _M("ppo/learning_rate", "", "Learning rate of the policy."),
    _M("ppo/critic_learning_rate", "", "Learning rate of the critic."),
    _M("ppo/ptx_loss", "nats/token", "Negative log-likelihood of the pretraining mix (PPO-ptx).", "lower"),
    _M("ppo/policy_version", "syncs", "Number of weight syncs behind the weights that sampled this step."),
    _M(
        "ppo/staleness",
        "syncs",
        "Largest age of a trained token: trainer's version minus the token's version.",
        "lower",
    ),
    _M("ppo/sync_bytes", "bytes", "Bytes of weights sent to one generator in this step's sync."),
    _M("ppo/saved_bytes", "bytes", "Bytes on the disk of the step's saved rollouts (ppo.save_rollouts)."),
    _M("ppo/padding_fraction", "fraction", "Share of the positions the trainer computed that hold padding.", "lower"),
)

_TIME = (
    _M("time/step", "s", "Wall time of the whole step.", "lower", "s"),
    _M("time/generate", "s", "Wall time from asking for rollouts to having the last one.", "lower"),
    _M("time/score", "s", "Wall time of reference log-probabilities and reward scores.", "lower"),
    _M("time/update", "s", "Wall time of the trainer's update, all PPO epochs.", "lower"),
    _M("time/sync", "s", "Wall time of moving the new weights into the generators.", "lower"),
    _M("time/save", "s", "Wall time of writing a checkpoint in this step.", "lower"),
    _M("time/evaluate", "s", "Wall time of evaluating held-out prompts in this step.", "lower"),
    _M(
        "time/tokens_per_second",
        "tokens/s",
        "Prompt and response tokens of the step per second of its wall time.",
        "higher",
        "tok/s",
    ),
    _M("time/generate_tokens_per_second", "tokens/s", "Sampled tokens per second of generation.", "higher"),
    _M(
        "time/update_tokens_per_second",
        "tokens/s",
        "Rollout tokens trained on per second of update, epochs counted once.",
        "higher",
    ),
)

_EVALUATION = (
    _M(
        "gold/heldout_mean",
        "grade",
        "Mean ground-truth grade of held-out prompts, never seen by training.",
        "higher",
        "gold",
    ),
    _M("gold/heldout_low", "grade", "Lower end of the 95% interval of gold/heldout_mean."),
    _M("gold/heldout_high", "grade", "Upper end of the 95% interval of gold/heldout_mean."),
    _M(
        "gold/heldout_score",
        "reward",
        "Mean reward-model score (the proxy) of the same held-out responses.",
        "higher",
        "proxy",
    ),
    _M("gold/heldout_kl_per_response", "nats/response", "KL(policy || reference) per held-out response."),
    _M("gold/heldout_response_length", "tokens", "Mean length of the held-out responses, EOS included."),
    _M(
        "gold/heldout_finished_fraction",
        "fraction",
        "Share of held-out responses that ended with a stop token.",
        "higher",
    ),
    _M("grade/*", "grade", "Held-out mean of the task's grade of this name."),
)

DEFINITIONS: tuple[MetricDefinition, ...] = (
    *_SFT,
    *_REWARD_MODEL,
    *_DPO,
    *_PPO_REWARD,
    *_PPO_UPDATE,
    *_TIME,
    *_EVALUATION,
)
REGISTRY: dict[str, MetricDefinition] = {definition.name: definition for definition in DEFINITIONS}
