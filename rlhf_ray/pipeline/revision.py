"""``rlhf-ray constitution revise``: the run's SFT model responds, a critic criticises, a reviser revises."""

from __future__ import annotations

from typing import Any

from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.constitution import read_constitution
from rlhf_ray.judging.revising import Revision, revise
from rlhf_ray.metrics.progress import progress
from rlhf_ray.pipeline.comparison import spread
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.judging import open_asker
from rlhf_ray.pipeline.sampling import requests_for, sample
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import SamplingSettings

PURPOSE = 104  # of the responses' seeds
STEPS, DEMONSTRATIONS = "revisions.jsonl", "demonstrations.jsonl"


def check_revision(context: Context) -> None:
    """Raise ConfigError, before anything is started, where nobody could revise, or by no principle."""
    config = context.config
    if not config.judge.is_there:
        raise ConfigError("judge.kind", "none", "leaves nobody to criticise and revise", "use judge.kind=model")
    if not config.judge.constitution:
        remedy = "give for example judge.constitution=configs/constitutions/helpful_honest_harmless.yaml"
        raise ConfigError("judge.constitution", "", "must name the principles to revise by", remedy)
    if config.judge.kind == "simulated" and config.data.task != "world":
        rule = f"can revise in the microworld alone, and data.task is {config.data.task}"
        raise ConfigError("judge.kind", "simulated", rule, "use judge.kind=model or endpoint")


async def make_revisions(context: Context) -> dict[str, Any]:
    """Write every step to ``constitution/revisions.jsonl`` and what SFT learns from to ``demonstrations.jsonl``.

    Raises BudgetError, after writing, where the budget ended first.
    """
    config = context.config
    constitution = read_constitution(config.judge.constitution)
    drafts = await respond(context)
    async with open_asker(context) as asker:
        revisions = await revise(drafts, asker, constitution, num_rounds=config.revision.num_rounds, seed=config.seed)
        stopped = asker.stopped
    directory = context.store.root / "constitution"
    directory.mkdir(parents=True, exist_ok=True)
    write_jsonl(directory / STEPS, (revision.record() for revision in revisions))
    spoken = [revision for revision in revisions if revision.response.strip()]
    write_jsonl(directory / DEMONSTRATIONS, (revision.demonstration() for revision in spoken))
    if stopped is not None:
        raise stopped
    return {
        "steps": str(directory / STEPS),
        "demonstrations": str(directory / DEMONSTRATIONS),
        "prompts": len(revisions),
        "revised": sum(revision.response != revision.first for revision in revisions),
    }


async def respond(context: Context) -> list[Revision]:
    """One response of the SFT model to each of ``revision.num_prompts`` training prompts."""
    config, tools = context.config, TextTools.of(context)
    room = config.ppo.max_response_tokens
    prompts, texts, _ = tools.prompts(spread(context.task.prompts("train"), config.revision.num_prompts), room=room)
    requests = requests_for(prompts, samples=1, seed=config.seed, purpose=PURPOSE)
    settings = SamplingSettings(
        temperature=config.revision.temperature, max_tokens=room, stop_token_ids=tools.stop_token_ids
    )
    async with context.fleet.scope() as scope:
        generator = await scope.generators(str(policy_path(context)))
        with progress("Responding", len(requests), "response") as bar:
            shards = await sample(scope, generator, requests, settings, bar)
    rollouts = sorted((rollout for shard in shards for rollout in shard.rollouts), key=lambda r: r.order)
    return [Revision(text, tools.decode(r.response_ids)) for text, r in zip(texts, rollouts, strict=True)]
