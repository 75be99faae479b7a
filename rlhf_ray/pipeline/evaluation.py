"""Stage ``evaluation``: the SFT model and what each method made of it answer the same held-out prompts.

The ground truth grades the answers, the sources of rewards score them.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from rlhf_ray.config.run import BEST_OF_N
from rlhf_ray.data.collate import sampled_logprobs
from rlhf_ray.data.task import Task
from rlhf_ray.metrics.evaluation import PRINCIPAL_GRADE, GradedResponse, write_graded
from rlhf_ray.metrics.progress import ProgressReport, progress
from rlhf_ray.metrics.statistics import mean_interval
from rlhf_ray.metrics.text import text_measures
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.reward_model import own_reward_models
from rlhf_ray.pipeline.sampling import FetchedShard, requests_for, sample
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import AdaptersOff, GenerationRequest, Prompt, Rollout, SamplingSettings, Score, TextPrompt
from rlhf_ray.rewards.ensemble import MEMBER
from rlhf_ray.rewards.texts import PromptText
from rlhf_ray.roles import Generator, Reference, RewardModel, RolloutShard

PURPOSE = 104


async def evaluate(context: Context) -> dict[str, Any]:
    """Write ``evaluation/sft.jsonl`` and one such file for each method: one graded response a line."""
    models = {"sft": str(policy_path(context))}
    for method in context.config.methods:
        models[method] = models["sft"] if method == BEST_OF_N else str(context.results(method)["policy"])
    graded = await evaluate_models(context, models)
    results: dict[str, Any] = {}
    for name, responses in graded.items():
        target = context.directory("evaluation") / f"{name}.jsonl"
        write_graded(target, responses)
        results[name] = str(target)
    return results


async def evaluate_models(context: Context, models: Mapping[str, str]) -> dict[str, list[GradedResponse]]:
    """Sample, score and grade each model (name -> checkpoint) on the held-out prompts; KL is against the SFT model.

    The score is what PPO follows: every source of rewards by its weight. Generators and frozen servers start once.
    """
    config = context.config.evaluation
    heldout = HeldOut.of(context, config.num_prompts, config.max_response_tokens, config.temperature)
    graded = {}
    async with context.fleet.scope() as scope:
        generator, reference, reward_model = await asyncio.gather(
            scope.generators(next(iter(models.values()))),
            scope.reference_servers(str(policy_path(context)), config.temperature),
            start_rewards(context, scope),
        )
        for number, (name, path) in enumerate(models.items()):
            if number:
                await generator.load(path)
            asked = heldout.best_of(config.best_of) if name == BEST_OF_N else heldout
            with progress(f"Evaluating {name.upper()}", len(asked.requests), "response") as bar:
                graded[name] = await asked.answers(scope, generator, reference, reward_model, bar)
    return graded


async def start_rewards(context: Context, scope: Scope) -> RewardModel:
    """Every source of rewards, told of all prompts that may be answered: training and held-out ones."""
    if not context.config.scores_responses:
        return NoRewards()
    prompts = [*context.task.prompts("train"), *context.task.prompts("heldout")]
    return await start_rewards_for(context, scope, {prompt.prompt_id: PromptText.of(prompt) for prompt in prompts})


async def start_rewards_for(context: Context, scope: Scope, prompts: Mapping[str, PromptText]) -> RewardModel:
    """Every source of rewards, told of these prompts, by prompt_id."""
    return await scope.rewards(
        own_models=own_reward_models(context), tokenizer=context.results("model")["tokenizer"], prompts=prompts
    )


def total_score(score: Score) -> float | None:
    """What a response earns in all; None where it could not be scored."""
    return None if score.failed else score.total + sum(value for _, value in score.step_rewards)


def shown_parts(score: Score) -> dict[str, float]:
    """What a source's score is made of (axes, disagreement), for tables; single members of an ensemble left out."""
    return {name: value for name, value in score.parts.items() if "." in name and f".{MEMBER}" not in name}


class NoRewards:
    """Stands where a run has no reward at all: nothing is scored."""

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        return tuple(Score(math.nan, failed="the run has no source of rewards") for _ in shard.summaries)


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts, ready to be answered ``samples`` times and graded. ``keeps_best``: by score, of each prompt."""

    task: Task
    tools: TextTools
    texts: Sequence[TextPrompt]
    requests: Sequence[GenerationRequest]
    settings: SamplingSettings
    prompts: Sequence[Prompt]
    seed: int
    samples: int = 1
    keeps_best: bool = False

    @classmethod
    def of(
        cls, context: Context, num_prompts: int, max_tokens: int, temperature: float, *, samples: int = 1
    ) -> HeldOut:
        """The first ``num_prompts`` held-out prompts that leave room for ``max_tokens``."""
        tools = TextTools.of(context)
        prompts, texts, _ = tools.prompts(context.task.prompts("heldout")[:num_prompts], room=max_tokens)
        return cls(
            task=context.task,
            tools=tools,
            texts=texts,
            requests=requests_for(prompts, samples=samples, seed=context.config.seed, purpose=PURPOSE),
            prompts=prompts,
            seed=context.config.seed,
            samples=samples,
            settings=SamplingSettings(
                temperature=temperature, max_tokens=max_tokens, stop_token_ids=tools.stop_token_ids
            ),
        )

    def best_of(self, samples: int) -> HeldOut:
        """The same prompts, each to be answered with the best of ``samples`` responses."""
        requests = requests_for(self.prompts, samples=samples, seed=self.seed, purpose=PURPOSE)
        return replace(self, requests=requests, samples=samples, keeps_best=True)

    async def answers(
        self, scope: Scope, generator: Generator, reference: Reference, reward_model: RewardModel, bar: ProgressReport
    ) -> list[GradedResponse]:
        """Sample, score and grade; in the order of the prompts."""
        shards = await sample(scope, generator, self.requests, self.settings, bar)
        graded = await asyncio.gather(*(self._graded(scope, shard, reference, reward_model) for shard in shards))
        responses = [response for of_shard in graded for response in of_shard]
        return best_of_n(responses, self.samples) if self.keeps_best else responses

    async def _graded(
        self, scope: Scope, fetched: FetchedShard, reference: Reference, reward_model: RewardModel
    ) -> list[GradedResponse]:
        ref_logprobs = await scope.fetch(await reference.logprobs(fetched.shard))
        scores = await reward_model.score(fetched.shard)
        if isinstance(ref_logprobs, AdaptersOff):  # nobody but the trainer knows the reference
            ref_logprobs = [np.full_like(rollout.rollout_logprobs, np.nan) for rollout in fetched.rollouts]
        return [
            self._grade(
                rollout,
                score,
                float(np.sum(rollout.rollout_logprobs - sampled_logprobs(logprobs, rollout.response_ids))),
            )
            for rollout, score, logprobs in zip(fetched.rollouts, scores, ref_logprobs, strict=True)
        ]

    def _grade(self, rollout: Rollout, score: Score, kl: float) -> GradedResponse:
        prompt, text = self.texts[rollout.order // self.samples], self.tools.decode(rollout.response_ids)
        return GradedResponse(
            prompt_id=prompt.prompt_id,
            kind=prompt.kind,
            prompt_text="\n".join(message.content for message in prompt.messages),
            response_text=text,
            grades={**self.task.grade(prompt, text), **shown_parts(score)},
            score=total_score(score),
            kl=kl,
            num_tokens=len(rollout.response_ids),
            finished=rollout.finish_reason == "stop",
        )


def best_of_n(responses: Sequence[GradedResponse], samples: int) -> list[GradedResponse]:
    """Of every ``samples`` responses in a row the one with the best score; the first where nothing was scored.

    Its KL is what choosing costs at most, log n - (n - 1) / n (Beirami et al. 2024, theorem 1): no tokens tell it.
    """
    bound = math.log(samples) - (samples - 1) / samples
    rows = (responses[start : start + samples] for start in range(0, len(responses), samples))
    return [replace(max(row, key=lambda r: -math.inf if r.score is None else r.score), kl=bound) for row in rows]


def heldout_metrics(responses: Sequence[GradedResponse]) -> dict[str, float]:
    """``gold/heldout_*`` and ``text/*`` of an evaluation during training.

    The grade's are missing where there is no ground truth, the score where nothing could be scored, and the KL where
    only the trainer knows the reference (LoRA). The interval's unit is the prompt: its responses are averaged first.
    """
    metrics = {
        "gold/heldout_response_length": float(np.mean([r.num_tokens for r in responses])),
        "gold/heldout_finished_fraction": float(np.mean([r.finished for r in responses])),
    }
    texts, prompt_ids = [r.response_text for r in responses], [r.prompt_id for r in responses]
    metrics |= {f"text/{name}": value for name, value in text_measures(texts, prompt_ids).items()}
    golds: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        if PRINCIPAL_GRADE in response.grades:
            golds[response.prompt_id].append(response.grades[PRINCIPAL_GRADE])
    if golds:
        interval = mean_interval([fmean(own) for own in golds.values()])
        metrics["gold/heldout_mean"] = interval.value
        metrics["gold/heldout_low"] = interval.low
        metrics["gold/heldout_high"] = interval.high
    if scores := [r.score for r in responses if r.score is not None]:
        metrics["gold/heldout_score"] = float(np.mean(scores))
    kl = float(np.mean([r.kl for r in responses]))
    return metrics if np.isnan(kl) else {**metrics, "gold/heldout_kl_per_response": kl}
