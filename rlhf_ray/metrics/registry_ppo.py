"""What a PPO step measures: rewards, the update, the driver's clock, the fleet."""

from __future__ import annotations

from rlhf_ray.metrics.definition import MetricDefinition

_M = MetricDefinition

PPO_REWARD = (
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

PPO_UPDATE = (
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

TIME = (
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

FLEET = (
    _M("fleet/generators", "", "Generators that serve after the step's weight sync."),
    _M("fleet/restarts", "", "Generators of the run so far that were started in place of a lost one.", "lower"),
    _M("fleet/requeued", "shards", "Shards of the run so far that went to another generator than at first.", "lower"),
    _M("fleet/waiting_fraction", "fraction", "Share of the time since the last sync in which rollouts were awaited."),
    _M("fleet/idle_fraction", "fraction", "Share of that time in which a generator had nothing to do, their mean."),
)
