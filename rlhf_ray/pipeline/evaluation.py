"""Stage ``evaluation``: the SFT and the PPO model answer the same held-out prompts, and are graded by the ground truth."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_ray.metrics.evaluation import GradedResponse, write_graded
from rlhf_ray.metrics.progress import progress
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.sampling import FetchedShard, requests_for, sample
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Rollout, SamplingSettings, TextPrompt
from rlhf_ray.roles import Reference, RewardModel

PURPOSE = 104


async def evaluate(context: Context) -> dict[str, Any]:
    """Write ``evaluation/sft.jsonl`` and ``evaluation/ppo.jsonl``: one graded response a line."""
    models = {"sft": str(policy_path(context)), "ppo": str(context.results("ppo")["policy"])}
    results: dict[str, Any] = {}
    for name, path in models.items():
        graded = await evaluate_model(context, name, path)
        target = context.directory("evaluation") / f"{name}.jsonl"
        write_graded(target, graded)
        results[name] = str(target)
    return results


async def evaluate_model(context: Context, name: str, path: str) -> list[GradedResponse]:
    """Sample, score and grade one model on the held-out prompts. KL is measured against the SFT model."""
    config, tools = context.config.evaluation, TextTools.of(context)
    prompts, texts, _ = tools.prompts(
        context.task.prompts("heldout")[: config.num_prompts], room=config.max_response_tokens
    )
    settings = SamplingSettings(
        temperature=config.temperature, max_tokens=config.max_response_tokens, stop_token_ids=tools.stop_token_ids
    )
    requests = requests_for(prompts, samples=1, seed=context.config.seed, purpose=PURPOSE)
    reward_path = str(context.results("reward_model")["model"])
    async with context.fleet.scope() as scope:
        generator, reference, reward_model = await asyncio.gather(
            scope.generators(path),
            scope.reference_servers(str(policy_path(context))),
            scope.reward_model(reward_path, context.config.model),
        )
        with progress(f"Evaluating {name.upper()}", len(requests), "response") as bar:
            shards = await sample(scope, generator, requests, settings, bar)
            graded = [await _graded(context, scope, tools, shard, texts, reference, reward_model) for shard in shards]
    return [response for responses in graded for response in responses]


async def _graded(
    context: Context,
    scope: Scope,
    tools: TextTools,
    fetched: FetchedShard,
    texts: Sequence[TextPrompt],
    reference: Reference,
    reward_model: RewardModel,
) -> list[GradedResponse]:
    ref_logprobs = await scope.fetch(await reference.logprobs(fetched.shard))
    scores = await reward_model.score(fetched.shard)
    return [
        _grade(context, tools, texts[rollout.order], rollout, score, float(np.sum(rollout.rollout_logprobs - logprobs)))
        for rollout, score, logprobs in zip(fetched.rollouts, scores, ref_logprobs, strict=True)
    ]


def _grade(
    context: Context, tools: TextTools, prompt: TextPrompt, rollout: Rollout, score: float, kl: float
) -> GradedResponse:
    text = tools.decode(rollout.response_ids)
    return GradedResponse(
        prompt_id=prompt.prompt_id,
        kind=prompt.kind,
        prompt_text="\n".join(message.content for message in prompt.messages),
        response_text=text,
        grades=dict(context.task.grade(prompt, text)),
        score=score,
        kl=kl,
        num_tokens=len(rollout.response_ids),
        finished=rollout.finish_reason == "stop",
    )
