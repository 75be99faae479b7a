"""Settings that are allowed and will bite, and sizes that do not divide."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.doctor.facts import Facts
from rlhf_ray.doctor.findings import Finding, note, warning

COLD = 0.5
HIGH_RATE = 1e-4  # of a policy that was pretrained
LOOSE_LOGPROBS = 0.05  # nats a token, between an engine and a trainer in bfloat16


def batches(facts: Facts) -> Iterator[Finding]:
    """Work that does not divide evenly over ranks and engines."""
    config, ranks = facts.config, facts.config.training.num_ranks
    ppo = config.ppo
    if "ppo" in config.methods:
        rows = ppo.rollouts_per_step // ppo.num_minibatches
        if rows < ranks:
            found = f"a minibatch has {rows} rollouts and there are {ranks} ranks: some have nothing to do"
            yield warning("ppo.num_minibatches", found, f"use at most {max(1, ppo.rollouts_per_step // ranks)}")
        elif rows % ranks:
            found = f"{rows} rollouts of a minibatch do not divide over {ranks} ranks: some wait for others"
            yield note("ppo.num_minibatches", found, f"make rollouts a multiple of {ranks * ppo.num_minibatches}")
        engines, shard = config.generation.num_engines, config.generation.shard_size
        if ppo.rollouts_per_step < engines:
            found = f"{engines} engines share {ppo.rollouts_per_step} rollouts: some have nothing to do"
            yield warning("generation.num_engines", found, "use fewer engines or larger steps")
        elif ppo.rollouts_per_step < engines * shard:
            found = (
                f"{ppo.rollouts_per_step} rollouts are less than {engines} engines x {shard}: scoring cannot overlap"
            )
            yield note("generation.shard_size", found, f"try {max(1, ppo.rollouts_per_step // engines // 4)}")
    for name, size in (("sft", config.sft.batch_size), ("reward_model", config.reward_model.batch_size)):
        if size % ranks:
            found = f"{size} do not divide over {ranks} ranks"
            yield note(f"{name}.batch_size", found, f"use a multiple of {ranks}")


def reward_hacking(facts: Facts) -> Iterator[Finding]:
    """Nothing holds the policy, or nobody would see it go."""
    config, ppo = facts.config, facts.config.ppo
    if "ppo" not in config.methods:
        return
    if ppo.kl.coef == 0 and ppo.kl.controller == "fixed":
        found = "nothing holds the policy near the reference: it will find what the reward model gets wrong"
        yield warning("ppo.kl.coef", found, "try 0.05, unless the reward is verifiable")
    if ppo.eval_every == 0:
        found = "no evaluation while PPO runs: the reward rises also where the text gets worse"
        yield warning("ppo.eval_every", found, f"try {max(1, ppo.num_steps // 10)}")


def resume(facts: Facts) -> Iterator[Finding]:
    """A run that is interrupted would begin PPO again."""
    ppo = facts.config.ppo
    if "ppo" in facts.config.methods and ppo.checkpoint_every == 0:
        found = "no state is saved: an interrupted PPO begins again at step 1"
        yield warning("ppo.checkpoint_every", found, f"try {max(1, ppo.num_steps // 10)}")


def sampling(facts: Facts) -> Iterator[Finding]:
    """Too little exploration, and tokens sampled from another distribution than is trained."""
    config, ppo = facts.config, facts.config.ppo
    if "ppo" not in config.methods:
        return
    if ppo.temperature < COLD:
        found = f"{ppo.temperature:g} samples nearly the same response every time: nothing to learn from"
        yield warning("ppo.temperature", found, "use 1.0")
    engine = config.generation.dtype
    if engine not in ("auto", config.training.dtype):
        if ppo.correction.level == "none":
            found = (
                f"engines sample in {engine}, the trainer computes in {config.training.dtype}, and nothing corrects it"
            )
            yield warning("ppo.correction.level", found, "use token, or generation.dtype=auto")
    elif config.training.dtype == "bfloat16" and ppo.contracts.max_logprob_difference < LOOSE_LOGPROBS:
        limit = ppo.contracts.max_logprob_difference
        found = f"a run stops where engine and trainer differ by {limit:g} nats a token, which bfloat16 may do"
        yield note(
            "ppo.contracts.max_logprob_difference", found, f"watch ppo/logprob_difference; {LOOSE_LOGPROBS:g} is loose"
        )


def optimizer(facts: Facts) -> Iterator[Finding]:
    """Rates that undo pretraining, and gradients that nothing bounds."""
    config = facts.config
    rate = config.ppo.policy_optimizer.learning_rate
    if "ppo" in config.methods and config.model.path and not config.training.lora.enabled and rate > HIGH_RATE:
        found = f"{rate:g} is high for a pretrained policy"
        yield warning("ppo.policy_optimizer.learning_rate", found, "try 1e-6 to 1e-5")
    if config.training.gradient_clipping == 0:
        yield warning("training.gradient_clipping", "one bad batch can undo the policy", "use 1.0")


def schedule(facts: Facts) -> Iterator[Finding]:
    """A schedule that does not fit where roles are, or gives nothing for the age of its tokens."""
    config, ppo = facts.config, facts.config.ppo
    if "ppo" not in config.methods:
        return
    engine = config.generation.gpus_per_engine
    shared = engine is not None and engine < 1 and config.training.gpus_per_rank < 1
    if facts.machine.device == "cuda":
        if ppo.schedule == "colocate" and not shared:
            found = "engines would sleep while the trainer computes on other GPUs: both wait, and no memory is won"
            yield warning("ppo.schedule", found, "use one_step_off or async, or let them share GPUs (rlhf-ray plan)")
        if ppo.schedule == "sync" and shared:
            found = "engines keep their memory while the trainer computes on the same GPUs"
            yield note("ppo.schedule", found, "colocate lets them sleep meanwhile")
    if ppo.schedule == "async" and ppo.filter.enabled and ppo.max_staleness > 1:
        found = "with ppo.filter batches take turns at the prompts, so that only one is sampled at a time"
        yield note("ppo.max_staleness", found, "1 gives as much")
    if ppo.staleness_bound and ppo.num_epochs > 2:
        found = f"{ppo.num_epochs} epochs move the policy far, and tokens wait {ppo.staleness_bound} such updates"
        yield note("ppo.num_epochs", found, "watch ppo/rollout_weight_max; 1 or 2 are usual off policy")


CHECKS = (batches, reward_hacking, resume, sampling, optimizer, schedule)
