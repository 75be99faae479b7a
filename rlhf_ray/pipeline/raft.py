"""Stage ``raft``: the SFT model is fine-tuned on its own best responses, those that the rewards prefer (best of n)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rlhf_ray.data.collate import response_sequence
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.progress import progress
from rlhf_ray.pipeline.comparison import spread
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.evaluation import start_rewards, total_score
from rlhf_ray.pipeline.sampling import requests_for, sample, scored
from rlhf_ray.pipeline.sft import fit, start_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Prompt, Rollout, SamplingSettings
from rlhf_ray.stages.sft import SftSpec

PURPOSE = 105


async def train_raft(context: Context) -> dict[str, Any]:
    """Write ``raft/policy`` and ``raft/best.jsonl``, the responses that it learned from (Dong et al. 2023, RAFT)."""
    config, tools = context.config, TextTools.of(context)
    room = config.ppo.max_response_tokens
    prompts, _, _ = tools.prompts(spread(context.task.prompts("train"), config.raft.num_prompts), room=room)
    best = best_of_each(await _sampled(context, tools, prompts), config.raft.responses_per_prompt)
    if not best:
        raise DataError("rewards could score none of the sampled responses; see rewards.sources")
    write_jsonl(context.directory("raft") / "best.jsonl", (_row(tools, *each) for each in best))
    train = [response_sequence(rollout.prompt_ids, rollout.response_ids) for rollout, _, _ in best]
    shown = context.task.demonstrations("heldout")[: config.sft.max_eval_demonstrations]
    heldout = tools.demonstrations(shown)[0] if shown else []
    batch_size = min(config.raft.batch_size, len(train))
    num_steps = max(1, round(config.raft.num_epochs * len(train) / batch_size))
    spec = SftSpec(
        model_path=str(start_path(context)),
        model=config.model,
        training=config.training,
        optimizer=config.raft.optimizer,
        num_steps=num_steps,
    )
    policy = context.directory("raft") / "policy"
    async with context.fleet.scope() as scope:
        trainer = await scope.trainer(spec)
        schedule = {"num_steps": num_steps, "batch_size": batch_size, "eval_every": config.raft.eval_every}
        loss = await fit(context, trainer, train, heldout, stage="raft", **schedule)
        await trainer.save(str(policy))
    tools.tokenizer.save_pretrained(policy)
    return {
        "policy": str(policy),
        "steps": num_steps,
        "prompts": len(prompts),
        "best": len(best),
        "mean_score": fmean(mean for _, _, mean in best),
        "mean_best_score": fmean(score for _, score, _ in best),
        **({} if math.isnan(loss) else {"heldout_loss": loss}),
    }


async def _sampled(context: Context, tools: TextTools, prompts: Sequence[Prompt]) -> list[tuple[Rollout, float | None]]:
    """Responses of the SFT model with their scores, in order; None where one could not be scored."""
    config = context.config
    samples = config.raft.responses_per_prompt
    requests = requests_for(prompts, samples=samples, seed=config.seed, purpose=PURPOSE)
    settings = SamplingSettings(
        temperature=config.raft.temperature,
        max_tokens=config.ppo.max_response_tokens,
        stop_token_ids=tools.stop_token_ids,
    )
    async with context.fleet.scope() as scope:
        generator = await scope.generators(str(start_path(context)))
        rewards = await start_rewards(context, scope)
        with progress(f"Sampling {samples} responses a prompt", len(requests), "response") as bar:
            shards = await sample(scope, generator, requests, settings, bar)
        return [(rollout, total_score(score)) for rollout, score in await scored(rewards, shards)]


def best_of_each(sampled: Sequence[tuple[Rollout, float | None]], samples: int) -> list[tuple[Rollout, float, float]]:
    """Of every ``samples`` responses in a row the best one, its score and the mean; equal scores: the first.

    A response without a score is left out, and a prompt without any.
    """
    best = []
    for start in range(0, len(sampled), samples):
        known = [(rollout, score) for rollout, score in sampled[start : start + samples] if score is not None]
        if known:
            rollout, score = max(known, key=lambda each: each[1])
            best.append((rollout, score, fmean(score for _, score in known)))
    return best


def _row(tools: TextTools, rollout: Rollout, score: float, mean: float) -> dict[str, object]:
    return {
        "prompt_id": rollout.prompt_id,
        "response": tools.decode(rollout.response_ids),
        "score": score,
        "mean_score": mean,
    }
