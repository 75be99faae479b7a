"""What a held-out evaluation asks besides its prompts: the same questions alone, the same responses edited."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlhf_ray.data.chat import tokenize_response
from rlhf_ray.hacking.evidence import Edited, Evaluated, Known, Twins
from rlhf_ray.hacking.language import known_pairs, vocabulary
from rlhf_ray.metrics.edits import EDITS, Edit
from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.metrics.progress import ProgressReport
from rlhf_ray.pipeline.comparison import read_rankings
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.evaluation import HeldOut, NoRewards, total_score
from rlhf_ray.pipeline.sampling import requests_for
from rlhf_ray.pipeline.sft import demonstrations
from rlhf_ray.records import Prompt, Rollout
from rlhf_ray.roles import Generator, Reference, RewardModel, RolloutShard

ALONE = 105  # keeps the seeds of these answers apart from others
SHORT_NAMES = {name.split(":")[0]: edit for name, edit in EDITS.items()}


@dataclass(frozen=True)
class Probes:
    """Asked beside ``heldout``. ``alone`` are the twins of those prompts that state a wrong opinion, by their ids."""

    heldout: HeldOut
    alone: HeldOut | None
    twin_of: Mapping[str, str]  # the twin's prompt id -> that of the prompt with the opinion
    edited: int  # responses to score under each edit

    @classmethod
    def of(cls, context: Context, heldout: HeldOut) -> Probes:
        alarms = context.config.alarms
        twins = dict(list(context.task.twins(heldout.texts).items())[: alarms.twin_prompts])
        room = heldout.settings.max_tokens
        edited = alarms.edited_prompts if context.config.scores_responses else 0
        if not twins:
            return cls(heldout, None, {}, edited)
        prompts, texts, _ = heldout.tools.prompts(list(twins.values()), room=room)
        alone = replace(
            heldout,
            texts=texts,
            prompts=prompts,
            requests=requests_for(prompts, samples=1, seed=heldout.seed, purpose=ALONE),
            samples=1,
        )
        return cls(heldout, alone, {twin.prompt_id: name for name, twin in twins.items()}, edited)

    async def evaluated(
        self,
        responses: Sequence[GradedResponse],
        scope: Scope,
        generator: Generator,
        reference: Reference,
        reward_model: RewardModel,
        bar: ProgressReport,
    ) -> Evaluated:
        """Ask, and lay the answers beside ``responses``, those to the held-out prompts."""
        twins = await self._twins(responses, scope, generator, reference, bar)
        return Evaluated(responses, twins, await self._edits(responses, scope, reward_model))

    async def _twins(
        self,
        responses: Sequence[GradedResponse],
        scope: Scope,
        generator: Generator,
        reference: Reference,
        bar: ProgressReport,
    ) -> list[Twins]:
        """Only graded: what the rewards think of an answer to a question alone is of no matter here."""
        if self.alone is None:
            return []
        by_prompt = {response.prompt_id: response for response in reversed(responses)}  # the first sample of each
        answers = await self.alone.answers(scope, generator, reference, NoRewards(), bar)
        return [Twins(by_prompt[self.twin_of[answer.prompt_id]], answer) for answer in answers]

    async def _edits(
        self, responses: Sequence[GradedResponse], scope: Scope, reward_model: RewardModel
    ) -> dict[str, list[Edited]]:
        """Score the first responses again under each edit, where the scores differ at all."""
        scores = [response.score for response in responses if response.score is not None]
        unit = float(np.std(scores)) if scores else 0.0
        prompts = {prompt.prompt_id: prompt for prompt in self.heldout.prompts}
        usable = [each for each in responses if each.score is not None and each.response_text.strip()][: self.edited]
        if not usable or unit < 1e-9:
            return {}
        shards = [self._shard(name, edit, usable, prompts) for name, edit in SHORT_NAMES.items()]
        made = await asyncio.gather(*(_scored(scope, reward_model, rollouts) for rollouts, _ in shards))
        found: dict[str, list[Edited]] = {}
        for name, (_, edited), scored in zip(SHORT_NAMES, shards, made, strict=True):
            found[name] = [
                Edited(response, text, score, (score - response.score) / unit)
                for (response, text), score in zip(edited, scored, strict=True)
                if score is not None and response.score is not None
            ]
        return found

    def _shard(
        self, name: str, edit: Edit, responses: Sequence[GradedResponse], prompts: Mapping[str, Prompt]
    ) -> tuple[list[Rollout], list[tuple[GradedResponse, str]]]:
        """The edited responses that are short enough, as rollouts that nobody sampled, and what each was made from."""
        rollouts: list[Rollout] = []
        edited: list[tuple[GradedResponse, str]] = []
        for response in responses:
            text, prompt = edit(response.response_text.strip()), prompts[response.prompt_id]
            ids = tokenize_response(self.heldout.tools.tokenizer, text, add_eos=True)
            if len(prompt.token_ids) + len(ids) <= self.heldout.tools.max_length:
                rollouts.append(
                    Rollout(
                        rollout_id=f"{response.prompt_id}/{len(rollouts)}+{name}",
                        prompt_id=response.prompt_id,
                        order=len(rollouts),
                        prompt_ids=prompt.token_ids,
                        response_ids=ids,
                        rollout_logprobs=np.zeros(len(ids), dtype=np.float32),
                        policy_versions=np.zeros(len(ids), dtype=np.int32),
                        finish_reason="stop",
                        seed=0,
                    )
                )
                edited.append((response, text))
        return rollouts, edited


async def _scored(scope: Scope, reward_model: RewardModel, rollouts: Sequence[Rollout]) -> list[float | None]:
    if not rollouts:
        return []
    shard = RolloutShard(tuple(rollout.summary for rollout in rollouts), await scope.put(tuple(rollouts)))
    return [total_score(score) for score in await reward_model.score(shard)]


def known_to(context: Context) -> Known:
    """What the run's models were taught from: all demonstrations and prompts, and the compared responses."""
    asked = (message.content for prompt in context.task.prompts("train") for message in prompt.messages)
    heldout = (message.content for prompt in context.task.prompts("heldout") for message in prompt.messages)
    shown = (message.content for each in demonstrations(context, "train") for message in each.messages)
    pairs: frozenset[tuple[str, str]] = frozenset()
    if context.config.trains_reward_model and "comparison" in context.finished:
        rankings = read_rankings(Path(context.results("comparison")["train"]))
        pairs = known_pairs(response for ranking in rankings for response in ranking.responses)
    return Known(
        words=vocabulary([*asked, *heldout, *shown]),
        pairs=pairs,
        harmful_kinds=tuple(context.config.alarms.harmful_kinds),
    )
