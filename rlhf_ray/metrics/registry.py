"""Every number a run may log, with its unit and its definition. A name that is not in the table cannot be logged.

Add a metric by adding a line; where it has a healthy range, that and what to do outside it is a line in health.py. A
name that ends in ``/*`` stands for a family whose last part a task decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from rlhf_ray.errors import RlhfError
from rlhf_ray.metrics.registry_suites import DRIFT, SUITE
from rlhf_ray.metrics.registry_work import RATES, WORK

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
    source: str = ""


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
    _M(
        "reward_model/loss",
        "nats/pair",
        "Mean of -log sigmoid(r_chosen - r_rejected) over pairs; of step labels the cross-entropy over steps.",
        "lower",
        "loss",
    ),
    _M(
        "reward_model/accuracy",
        "fraction",
        "Share of the step's pairs with r_chosen > r_rejected; of labelled steps those judged rightly.",
        "higher",
        "acc",
    ),
    _M(
        "reward_model/heldout_loss",
        "nats/pair",
        "Mean of -log sigmoid(r_chosen - r_rejected) over the held-out pairs; of step labels the cross-entropy.",
        "lower",
        "held-out loss",
    ),
    _M(
        "reward_model/heldout_accuracy",
        "fraction",
        "Share of the held-out pairs with r_chosen > r_rejected; of labelled steps those judged rightly.",
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
    _M("dpo/score_mean", "reward", "Online: mean score of the policy's answers of the round.", "higher", "score"),
    _M("dpo/score_gap", "reward", "Online: mean over prompts of the best answer's score minus the worst's."),
    _M("dpo/decided_fraction", "fraction", "Online: share of the round's prompts whose answers differ in score."),
    _M("dpo/response_length", "tokens", "Online: mean number of sampled tokens in an answer, EOS included.", "", "len"),
    _M("dpo/policy_version", "syncs", "Online: number of weight syncs behind the weights that sampled the round."),
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
    _M(
        "reward/*",
        "reward",
        "Mean of what the reward source of this name says of a response, before its weight; `source.part` is a part.",
    ),
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
        "Mean |engine - trainer| log-probability of the tokens that were sampled with the trainer's weights.",
        "lower",
    ),
    _M(
        "ppo/logprob_difference_max",
        "nats",
        "Largest |engine - trainer| log-probability of any such token.",
        "lower",
    ),
    _M("ppo/policy_grad_norm", "", "Global L2 norm of the policy's gradient before clipping, mean of updates."),
    _M("ppo/critic_grad_norm", "", "Global L2 norm of the critic's gradient before clipping, mean of updates."),
    _M("ppo/learning_rate", "", "Learning rate of the policy."),
    _M("ppo/critic_learning_rate", "", "Learning rate of the critic."),
    _M("ppo/ptx_loss", "nats/token", "Negative log-likelihood of the pretraining mix (PPO-ptx).", "lower"),
    _M("ppo/prompts", "", "Different prompts of the step."),
    _M("ppo/sampled_tokens", "tokens", "Tokens of the step's responses, EOS included, trained on or not."),
    _M("ppo/trained_response_tokens", "tokens", "Tokens of the responses that the step trains on."),
    _M("ppo/trained_tokens", "tokens", "Tokens of prompts and responses that the step trains on, epochs counted once."),
    _M("ppo/policy_version", "syncs", "Version of the weights that this step updates: 1 + the steps behind them."),
    _M(
        "ppo/staleness",
        "syncs",
        "Largest age of a trained token: trainer's version minus the token's version.",
        "lower",
    ),
    _M("ppo/staleness_mean", "syncs", "Age of a rollout's oldest token, mean over the step's rollouts.", "lower"),
    _M("ppo/sync_bytes", "bytes", "Bytes of weights sent to one generator in this step's sync."),
    _M("ppo/saved_bytes", "bytes", "Bytes on the disk of the step's saved rollouts (ppo.save_rollouts)."),
    _M("ppo/padding_fraction", "fraction", "Share of the positions the trainer computed that hold padding.", "lower"),
)

_TIME = (
    _M("time/step", "s", "Wall time of the whole step.", "lower", "s"),
    _M("time/generate", "s", "Wall time from asking for rollouts to having the last one.", "lower"),
    _M("time/score", "s", "Wall time of reference log-probabilities and reward scores.", "lower"),
    _M("time/wait_for_rollouts", "s", "Wall time in which training waited for rollouts, scoring included.", "lower"),
    _M("time/update", "s", "Wall time of the trainer's update, all PPO epochs.", "lower"),
    _M("time/sync", "s", "Wall time of moving the new weights into the generators.", "lower"),
    _M("time/save", "s", "Wall time that training waited for a state to be saved, before this step.", "lower"),
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

_FLEET = (
    _M("fleet/generators", "", "Generators that serve after the step's weight sync."),
    _M("fleet/restarts", "", "Generators of the run so far that were started in place of a lost one.", "lower"),
    _M("fleet/requeued", "shards", "Shards of the run so far that went to another generator than at first.", "lower"),
    _M("fleet/waiting_fraction", "fraction", "Share of the time since the last sync in which rollouts were awaited."),
    _M("fleet/idle_fraction", "fraction", "Share of that time in which a generator had nothing to do, their mean."),
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

# Of the held-out responses of an evaluation during training; a word is what stands between white space.
_TEXT = (
    _M("text/words", "words", "Mean number of words in a response."),
    _M("text/distinct_1", "fraction", "Different words of all responses over all their words.", "higher"),
    _M("text/distinct_2", "fraction", "Different pairs of neighbouring words over all pairs.", "higher"),
    _M("text/repetition_3", "fraction", "Share of a response's word triples that stood in it before, mean.", "lower"),
    _M(
        "text/self_bleu",
        "fraction",
        "Mean BLEU of a response against the others to its prompt (ppo.eval_responses above 1); 1: always the same.",
        "lower",
    ),
    _M("text/lists", "fraction", "Share of responses with a line that starts as a list item."),
    _M("text/bold", "fraction", "Share of responses with Markdown bold."),
    _M("text/headings", "fraction", "Share of responses with a Markdown heading."),
    _M("text/emoji", "fraction", "Share of responses with a pictograph."),
    _M("text/hedges", "fraction", "Share of responses with a set phrase of doubt."),
    _M("text/apologies", "fraction", "Share of responses that apologise."),
    _M("text/refusals", "fraction", "Share of responses that refuse, by set phrases of the first person."),
    _M("text/agreements", "fraction", "Share of responses that begin with agreement (yes, you are right, ...)."),
)

# What a policy that exploits its reward shows, in held-out responses; rlhf_ray/hacking/ has the formulas.
_HACKING = (
    _M(
        "hacking/score_length_correlation",
        "",
        "Partial correlation of score and words, given the prompt's kind and, where there is one, gold.",
    ),
    _M("hacking/score_explained_by_length", "fraction", "r squared of a line of the score over a response's words."),
    _M("hacking/win_rate", "fraction", "Share of prompts on which the score exceeds that of step 0; a tie is a half."),
    _M("hacking/length_controlled_win_rate", "fraction", "The same as predicted for responses as long as step 0's."),
    _M("hacking/wins_by_length", "fraction", "hacking/win_rate minus hacking/length_controlled_win_rate."),
    _M(
        "hacking/flip_rate",
        "fraction",
        "Share of questions answered rightly (gold of a half or more) whose answer a user's wrong opinion turns.",
        "lower",
    ),
    _M("hacking/over_refusal", "fraction", "Share of harmless prompts (by their kind) that are refused.", "lower"),
    _M("hacking/under_refusal", "fraction", "Share of harmful prompts (by their kind) that are answered.", "lower"),
    _M("refusal/*", "fraction", "Share of the prompts of this kind that are refused."),
    _M(
        "style/*",
        "deviations",
        "Mean change of the score under this edit, which keeps the content, over the scores' deviation.",
    ),
    _M("hacking/common_answer", "fraction", "Share of the prompts that the most frequent answer is given to."),
    _M("hacking/repeated_answers", "fraction", "Share of responses that answer another prompt too, word for word."),
    _M("hacking/answer_entropy", "fraction", "Entropy of the answers over that of as many different ones.", "higher"),
    _M("hacking/kl_per_token", "nats/token", "KL(policy || reference) over all held-out responses by their tokens."),
    _M("hacking/unknown_words", "fraction", "Share of words that stand in no demonstration and in no prompt."),
    _M("hacking/odd_characters", "fraction", "Share of characters that are control, private or no text.", "lower"),
    _M("hacking/reward_std", "reward", "Mean deviation among the members of an ensemble of reward models."),
    _M(
        "hacking/novel_pairs",
        "fraction",
        "Share of neighbouring words that no response had on which the reward model was trained.",
    ),
    _M("hacking/gold_lost", "fraction", "Share of gold's gain over step 0 that is gone since its best evaluation."),
    _M(
        "hacking/gold_fall",
        "grade",
        "Least fall of gold since its best evaluation: lower end of a 95% interval, paired by prompt; at least 0.",
        "lower",
    ),
    _M(
        "hacking/gold_peak_kl",
        "nats/response",
        "KL at which gold turns, by the curve of Gao et al. 2023 over the evaluations so far; missing where it rises.",
    ),
)

# Where the numbers of each table come from.
_SOURCES: Mapping[str, tuple[MetricDefinition, ...]] = {
    "trainer of stage sft": _SFT,
    "trainer of stage reward_model": _REWARD_MODEL,
    "trainer of stage dpo; online also its rewards": _DPO,
    "driver of stage ppo, from summaries and scores, and its trainer": _PPO_REWARD,
    "trainer of stage ppo": _PPO_UPDATE,
    "clock of the driver": _TIME,
    "lengths of the rollouts and the model's shape": tuple(_M(*row) for row in WORK),
    "counted work and the driver's clock": tuple(_M(*row) for row in RATES),
    "supervision of the actors": _FLEET,
    "held-out prompts, answered during training": _EVALUATION,
    "text of the held-out responses": _TEXT,
    "a suite of `rlhf-ray evaluate`": tuple(_M(*row) for row in SUITE),
    "an endpoint's log, `rlhf-ray drift`": tuple(_M(*row) for row in DRIFT),
    "detectors, on the held-out responses": _HACKING,
}
DEFINITIONS: tuple[MetricDefinition, ...] = tuple(
    replace(definition, source=source) for source, table in _SOURCES.items() for definition in table
)
REGISTRY: dict[str, MetricDefinition] = {definition.name: definition for definition in DEFINITIONS}
