"""Stage ``dpo``, online: the policy answers prompts, the rewards rank its answers, and it learns from them.

prompts ──> generators ──> responses ──> rewards ──> rankings ──> reference ──> trainer
                ^                                                                  │
                └───────────────── weights, version, checksum <────────────────────┘

Offline DPO learns from answers that another policy gave, and its own drift away from them. Here every round's pairs are
the policy's own (Guo et al. 2024, online AI feedback). The reference stays the SFT model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from rlhf_ray.checkpoint import Checkpoints
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.errors import WeightSyncError
from rlhf_ray.metrics.progress import progress
from rlhf_ray.metrics.sinks import open_metric_log
from rlhf_ray.pipeline.context import Context, GeneratorFleet, ReferenceServers, ResumableTrainer, Scope, quiet, warned
from rlhf_ray.pipeline.dpo import dpo_spec, preference_works, with_reference
from rlhf_ray.pipeline.evaluation import HeldOut, heldout_metrics, start_rewards, total_score
from rlhf_ray.pipeline.ppo import SampledPrompts, probe_text, training_prompts
from rlhf_ray.pipeline.ppo_run import NoProgress
from rlhf_ray.pipeline.resuming import ALARMS, TRAINER
from rlhf_ray.pipeline.sampling import requests_for, sample, scored
from rlhf_ray.pipeline.sft import policy_path, start_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.pipeline.watching import Watch
from rlhf_ray.records import Prompt, Ranking, Rollout, SamplingSettings, Score, TextPrompt
from rlhf_ray.roles import RewardModel, WeightSync
from rlhf_ray.selection import require_scored
from rlhf_ray.stages.work import ReferencedRanking

PURPOSE = 10_000  # plus the number of the round: its responses have seeds of their own
ANNOTATOR = "rewards"

Answer: TypeAlias = tuple[Rollout, Score]


async def train_dpo_online(context: Context) -> dict[str, Any]:
    """Write ``dpo/policy`` and ``dpo/round_NUMBER.jsonl``, the rankings that it learned from.

    Resumes at the last complete checkpoint.
    """
    tools = TextTools.of(context)
    prompts, too_long = training_prompts(context, tools)
    policy = context.directory("dpo") / "policy"
    async with context.fleet.scope() as scope:
        roles = await _start(context, scope, prompts)
        loop = OnlineDpo(context, scope, roles, tools, prompts)
        last = await loop.run()
        await roles.trainer.save(str(policy))
    tools.tokenizer.save_pretrained(policy)
    return {
        "policy": str(policy),
        "steps": loop.steps_done,
        "rounds": loop.rounds_done,
        "prompts": len(prompts),
        "too_long": too_long,
        "responses": loop.num_responses,
        "alarms": loop.watch.count,
        "last_step": last,
    }


@dataclass(frozen=True)
class Roles:
    """Who takes part. The reference is asked by evaluations too, where the loss has none."""

    trainer: ResumableTrainer
    generator: GeneratorFleet
    reward_model: RewardModel
    reference: ReferenceServers
    weights: WeightSync


async def _start(context: Context, scope: Scope, prompts: Sequence[Prompt]) -> Roles:
    sft, online = str(policy_path(context)), context.config.dpo.online
    trainer, generator, reward_model, reference = await asyncio.gather(
        scope.trainer(dpo_spec(context, online.num_steps)),
        scope.generators(str(start_path(context))),
        start_rewards(context, scope),
        scope.reference_servers(sft, online.temperature),
    )
    weights = await scope.weight_sync(trainer, generator, probe_text(prompts, context.config.generation.max_model_len))
    return Roles(trainer, generator, reward_model, reference, weights)


class OnlineDpo:
    """The loop. A round is ``dpo.online.every`` optimizer steps on what the policy answers at its beginning."""

    def __init__(
        self, context: Context, scope: Scope, roles: Roles, tools: TextTools, prompts: Sequence[Prompt]
    ) -> None:
        self.context = context
        self.config = context.config.dpo
        self.scope = scope
        self.roles = roles
        self.tools = tools
        self.texts = {text.prompt_id: text for text in context.task.prompts("train")}
        self.prompts_per_round = self.config.online.every * self.config.batch_size
        self.prompts = SampledPrompts(prompts, min(self.prompts_per_round, len(prompts)), context.config.seed)
        self.steps_done = 0
        self.rounds_done = 0
        self.num_responses = 0
        self.evaluations_done = -1  # before the first step is the first of them
        self.checkpoints = Checkpoints(context.directory("dpo") / "state")
        ppo = context.config.ppo
        self.heldout = HeldOut.of(
            context,
            ppo.eval_prompts,
            ppo.max_response_tokens,
            self.config.online.temperature,
            samples=ppo.eval_responses,
        )
        self.watch = Watch.of_dpo(context, self.heldout)

    async def run(self) -> dict[str, float]:
        """Run rounds until ``dpo.online.num_steps`` steps are done; return the last of every metric."""
        resumed = await self.resume()
        self.watch.begin(resumed)
        directory, logging = self.context.directory("dpo"), quiet(self.context.config.logging)
        last: dict[str, float] = {}
        with (
            open_metric_log(directory, logging, run_name="dpo", resumed_step=resumed) as log,
            progress("Online DPO", self.config.online.num_steps, "step") as bar,
        ):
            bar.advance(self.steps_done)
            await self.wait_for_person()
            while self.steps_done < self.config.online.num_steps:
                version = await self.sync_weights()
                heldout = await self.evaluated()
                answers = await self.sample(version)
                rankings = self.ranked(answers)
                measured = {**heldout, **summarise(answers, self.config.online.responses_per_prompt, version)}
                actions = self.watch.heed(self.steps_done + 1, measured)  # also where the round then ranks nothing
                for batch in self.batches(await self.referenced(rankings)):
                    trained = (await self.roles.trainer.update(preference_works(self.context, batch))).means()
                    self.steps_done += 1
                    actions |= self.watch.heed(self.steps_done, trained)
                    metrics = {**measured, **trained}
                    log.log(self.steps_done, metrics)
                    bar.advance()
                    bar.note(f"loss {metrics['dpo/loss']:.3f}, score {metrics['dpo/score_mean']:.2f}")
                    last |= metrics
                self.rounds_done += 1
                await self.save(asked=not actions.isdisjoint(("save", "pause")))
                await self.wait_for_person()
        return last

    async def wait_for_person(self) -> None:
        """Where an alarm has paused the run: until somebody has looked."""
        if self.watch.waiting:
            await self.watch.answered(self.steps_done, lambda: self.context.stop.asked)

    async def sync_weights(self) -> int:
        """Give the generators the trainer's weights; their version counts the rounds from 1."""
        return (await self.roles.weights.sync(self.rounds_done + 1)).version

    async def evaluated(self) -> Mapping[str, float]:
        """What held-out prompts say of the weights that the generators hold now, at every ``dpo.eval_every`` steps."""
        due = self.steps_done // self.config.eval_every
        if due == self.evaluations_done:
            return {}
        self.evaluations_done = due
        roles, bar = self.roles, NoProgress()
        responses = await self.heldout.answers(self.scope, roles.generator, roles.reference, roles.reward_model, bar)
        return {**heldout_metrics(responses), **await self.watch.examined(responses, self.scope, roles, bar)}

    async def sample(self, version: int) -> list[Answer]:
        """The policy's own answers to the next prompts, scored, in the order of the prompts.

        Raises WeightSyncError where a token was sampled under other weights than those that were just synced, and
        RewardError where more answers could not be scored than ``rewards.max_failed_fraction`` allows.
        """
        online = self.config.online
        asked = requests_for(
            self.prompts.next_prompts(self.prompts_per_round),
            samples=online.responses_per_prompt,
            seed=self.context.config.seed,
            purpose=PURPOSE + self.rounds_done,
        )
        requests = [replace(each, rollout_id=f"{version}/{each.order}") for each in asked]  # a prompt may come twice
        settings = SamplingSettings(
            temperature=online.temperature,
            max_tokens=self.context.config.ppo.max_response_tokens,
            stop_token_ids=self.tools.stop_token_ids,
        )
        shards = await sample(self.scope, self.roles.generator, requests, settings, NoProgress())
        answers = await scored(self.roles.reward_model, shards)
        require_version([rollout for rollout, _ in answers], version)
        require_scored([score for _, score in answers], self.context.config.rewards.max_failed_fraction)
        self.num_responses += len(answers)
        return answers

    def ranked(self, answers: Sequence[Answer]) -> list[Ranking]:
        """Each prompt's answers by their score, kept on the disk; what could not be scored is left out."""
        samples = self.config.online.responses_per_prompt
        groups = (answers[start : start + samples] for start in range(0, len(answers), samples))
        rankings = [
            rank_by_score(
                self.texts[group[0][0].prompt_id], group, [self.tools.decode(r.response_ids) for r, _ in group]
            )
            for group in groups
        ]
        path = self.context.directory("dpo") / f"round_{self.rounds_done + 1}.jsonl"
        write_jsonl(path, (asdict(ranking) for ranking in rankings))
        return rankings

    async def referenced(self, rankings: Sequence[Ranking]) -> list[ReferencedRanking]:
        """The rankings that decide anything, with what the reference says of their responses."""
        decided = [ranking for ranking in rankings if ranking.pairs]
        if not decided:
            return []
        tokenized, _ = self.tools.rankings(decided)
        return await with_reference(self.config, self.roles.reference if self.config.has_reference else None, tokenized)

    def batches(self, items: Sequence[ReferencedRanking]) -> Iterator[Sequence[ReferencedRanking]]:
        """The round's rankings in as many even parts as it has steps; fewer where there are not so many rankings.

        A round in which all answers were tied teaches nothing and counts as its steps, so that a run always ends.
        """
        count = min(self.config.online.every, self.config.online.num_steps - self.steps_done)
        if not items:
            warned(f"round {self.rounds_done + 1} of online DPO ranks nothing: the rewards score all answers alike")
            self.steps_done += count
            return
        for part in range(count):
            if batch := items[part::count]:
                yield batch
            else:
                self.steps_done += 1

    # ---------------------------------------------------------------------------------------------------------- state
    async def save(self, *, asked: bool = False) -> None:
        """Keep the whole state at every ``dpo.online.checkpoint_every`` rounds or where ``asked``, but for the last."""
        every = self.config.online.checkpoint_every
        due = asked or (every > 0 and self.rounds_done % every == 0)
        if not due or self.steps_done >= self.config.online.num_steps:
            return

        async def write(directory: Path) -> None:
            await self.roles.trainer.save_state(str(directory), TRAINER)

        state = {
            "rounds_done": self.rounds_done,
            "num_responses": self.num_responses,
            "evaluations_done": self.evaluations_done,
            "prompts": dict(self.prompts.state()),
            ALARMS: self.watch.state(),
        }
        saved = await self.checkpoints.save(self.steps_done, state, write)
        self.roles.trainer.checkpointed(str(saved.directory), TRAINER, self.steps_done)

    async def resume(self) -> int | None:
        """Go on where the last complete state was saved; return its step, None where there is none."""
        saved, warnings = self.checkpoints.latest()
        for warning in warnings:
            warned(warning)
        if saved is None:
            return None
        print(f"Online DPO resumes after step {saved.step} from {saved.directory}", flush=True)
        self.steps_done = saved.step
        self.rounds_done = int(saved.driver["rounds_done"])
        self.num_responses = int(saved.driver["num_responses"])
        self.evaluations_done = int(saved.driver["evaluations_done"])
        self.prompts.restore(saved.driver["prompts"])
        self.watch.restore(saved.driver.get(ALARMS, {}))
        await self.roles.trainer.load_state(str(saved.directory), TRAINER)
        self.roles.trainer.resumed(saved.step)
        return saved.step


def rank_by_score(prompt: TextPrompt, answers: Sequence[Answer], responses: Sequence[str]) -> Ranking:
    """The answers to one prompt, ranked by the rewards: the higher the score, the better; equal is a tie."""
    known = [
        (rollout, text, total)
        for (rollout, score), text in zip(answers, responses, strict=True)
        if (total := total_score(score)) is not None
    ]
    levels = sorted({total for _, _, total in known}, reverse=True)
    return Ranking(
        prompt_id=prompt.prompt_id,
        messages=prompt.messages,
        responses=tuple(text for _, text, _ in known),
        ranks=tuple(levels.index(total) for _, _, total in known),
        annotator=ANNOTATOR,
        response_token_ids=tuple(tuple(rollout.response_ids.tolist()) for rollout, _, _ in known),
        kind=prompt.kind,
    )


def require_version(rollouts: Sequence[Rollout], version: int) -> None:
    """Raise WeightSyncError unless every token was sampled under the weights of ``version``."""
    stale = [rollout.rollout_id for rollout in rollouts if (rollout.policy_versions != version).any()]
    if stale:
        raise WeightSyncError(
            f"{len(stale)} of {len(rollouts)} responses, {stale[0]!r} first, have tokens of other weights than version "
            f"{version}, which was just synced; a generator missed the sync: restart the run"
        )


def summarise(answers: Sequence[Answer], samples: int, version: int) -> Mapping[str, float]:
    """What a round's answers are worth, before the round trains on them."""
    totals = [total_score(score) for _, score in answers]
    groups = [[t for t in totals[i : i + samples] if t is not None] for i in range(0, len(totals), samples)]
    known = [total for group in groups for total in group]
    names = sorted({name for _, score in answers for name in score.parts})
    return {
        "dpo/policy_version": float(version),
        "dpo/response_length": fmean(len(rollout.response_ids) for rollout, _ in answers),
        "dpo/decided_fraction": fmean(len(set(group)) > 1 for group in groups),
        **({"dpo/score_mean": fmean(known)} if known else {}),
        **({"dpo/score_gap": fmean(max(g) - min(g) for g in groups if g)} if known else {}),
        **{f"reward/{n}": fmean(s.parts[n] for _, s in answers if n in s.parts) for n in names},
    }
