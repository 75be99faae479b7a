"""What SFT, reward models and DPO measure while they are trained."""

from __future__ import annotations

from rlhf_ray.metrics.definition import MetricDefinition

_M = MetricDefinition

SFT = (
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

REWARD_MODEL = (
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

DPO = (
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
