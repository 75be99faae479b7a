"""Stage ``comparison`` of a round: the newest policy answers new prompts, and those worth a label are labelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.data.task import Split
from rlhf_ray.errors import ConfigError
from rlhf_ray.feedback.records import ranking_of
from rlhf_ray.feedback.store import PreferenceStore, open_store
from rlhf_ray.feedback.unsure import most_unsure, unsureness
from rlhf_ray.pipeline.artefacts import write_atomically
from rlhf_ray.pipeline.comparison import (
    Answered,
    answered,
    candidates,
    labelled,
    read_rankings,
    spread,
    write_rankings,
)
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.evaluation import start_rewards
from rlhf_ray.pipeline.reward_model import own_reward_models
from rlhf_ray.pipeline.sampling import FetchedShard, scored
from rlhf_ray.pipeline.sft import start_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Ranking, TextPrompt
from rlhf_ray.rewards.ensemble import member_scores
from rlhf_ray.rewards.heads import WHOLE, read_heads
from rlhf_ray.roles import Generator

SPLITS: tuple[Split, ...] = ("train", "heldout")
PURPOSE = 200  # twice the round's number is added to it, and 1 for held-out prompts
ASKED = "asked.json"


async def collect(context: Context, number: int) -> dict[str, Any]:
    """Write the rankings of this round (``new_*.jsonl``) and those of all rounds so far (``rankings_*.jsonl``)."""
    results: dict[str, Any] = {}
    if context.config.iteration.labels == "people":
        new = await _from_people(context, number)
    else:
        new, results = await labelled(context, await _sampled(context, number))
    for split, rankings in new.items():
        every = [*_earlier(context, split), *rankings]
        path = context.directory("comparison") / f"rankings_{split}.jsonl"
        write_rankings(path, every)
        write_rankings(path.with_name(f"new_{split}.jsonl"), rankings)
        results[split] = str(path)
        results[f"{split}_rankings"] = len(every)
        results[f"new_{split}_rankings"] = len(rankings)
    return results


def _earlier(context: Context, split: Split) -> list[Ranking]:
    """The rankings of all rounds before."""
    return read_rankings(Path(context.results("earlier")[split])) if "earlier" in context.finished else []


# ------------------------------------------------------------------------------------------------------------ sampling
async def _sampled(context: Context, number: int) -> dict[Split, list[Answered]]:
    """New prompts of both splits with the newest policy's responses."""
    async with context.fleet.scope() as scope:
        generator = await scope.generators(str(start_path(context)))
        return {split: await _chosen(context, scope, generator, split, number) for split in SPLITS}


async def _chosen(context: Context, scope: Scope, generator: Generator, split: Split, number: int) -> list[Answered]:
    """Training prompts by ``iteration.choose``; held-out ones are not chosen, or they would tell of nothing else."""
    config, tools = context.config.iteration, TextTools.of(context)
    chooses = split == "train" and config.choose == "unsure" and "reward_model" in context.finished
    wanted = config.prompts_per_round if split == "train" else config.heldout_prompts_per_round
    prompts, texts, _ = tools.prompts(
        _unseen(context, split, wanted * (config.pool if chooses else 1)), room=context.config.ppo.max_response_tokens
    )
    purpose = PURPOSE + 2 * number + (split == "heldout")
    title = f"Round {number}: sampling for comparison ({split})"
    shards = await candidates(context, scope, generator, prompts, purpose=purpose, title=title)
    if chooses and len(prompts) > wanted:
        measures = await _unsureness(context, scope, shards)
        places = most_unsure([measures[prompt.prompt_id] for prompt in prompts], wanted)
        prompts, texts = [prompts[i] for i in places], [texts[i] for i in places]
    return answered(context, tools, prompts, texts, shards)


def _unseen(context: Context, split: Split, count: int) -> list[TextPrompt]:
    """``count`` prompts that no round before has labelled. Raises ConfigError where none is left."""
    seen = {ranking.prompt_id for ranking in _earlier(context, split)}
    left = [prompt for prompt in context.task.prompts(split) if prompt.prompt_id not in seen]
    if not left:
        raise ConfigError(
            "iteration.num_rounds",
            context.config.iteration.num_rounds,
            f"asks for more prompts than the {split} split has: all {len(seen)} are labelled",
            "lower it, or iteration.prompts_per_round, or bring more prompts",
        )
    return spread(left, count)


async def _unsureness(context: Context, scope: Scope, shards: Sequence[FetchedShard]) -> dict[str, float]:
    """By prompt: how unsure the reward model of the round before is of its responses; none could be scored: 0."""
    source = next(name for name, source in context.config.rewards.used.items() if source.is_own_model)
    scales = [_scale(path) for path in own_reward_models(context)]
    rewards = await start_rewards(context, scope)
    logits: dict[str, list[list[float]]] = {}
    texts: dict[str, list[bytes]] = {}
    for rollout, score in await scored(rewards, shards):
        of_prompt, said = logits.setdefault(rollout.prompt_id, []), texts.setdefault(rollout.prompt_id, [])
        if not score.failed:
            members = zip(scales, member_scores(score, source), strict=True)
            of_prompt.append([scale * own for scale, own in members])
            said.append(rollout.response_ids.tobytes())
    return {
        prompt_id: unsureness(list(zip(*own, strict=True)), texts[prompt_id]) if len(own) > 1 else 0.0
        for prompt_id, own in logits.items()
    }


def _scale(checkpoint: str) -> float:
    """What makes a logit of a normalised score again."""
    settings = json.loads((Path(checkpoint) / "config.json").read_text())
    return read_heads(settings, path=checkpoint)[1].deviations[WHOLE]


# -------------------------------------------------------------------------------------------------------------- labels
async def _from_people(context: Context, number: int) -> dict[Split, list[Ranking]]:
    """Put what was sampled into the preference store, then wait for people. Started again, it waits on."""
    config = context.config.iteration
    path = context.directory("comparison") / ASKED
    with open_store(config.store, create=True) as store:
        if not path.is_file():
            sampled = await _sampled(context, number)
            asked = {split: store.add_items(each.item for each in own) for split, own in sampled.items()}
            write_atomically(path, json.dumps(asked))
        wanted: dict[Split, list[str]] = json.loads(path.read_text())
        await _enough(store, [item for own in wanted.values() for item in own], context)
        return {split: _rankings(store, set(wanted[split])) for split in SPLITS}


async def _enough(store: PreferenceStore, wanted: Sequence[str], context: Context) -> None:
    """Return when enough of the items are judged, which may take days."""
    config = context.config.iteration
    needed, said = max(1, round(config.enough_labels * len(wanted))), -1
    while True:
        said_of = {k.judgement.item_id for k in store.judgements() if k.judgement.verdict != "skipped"}
        judged = len(said_of & set(wanted))
        if judged >= needed:
            return
        if judged != said:
            print(
                f"      {judged} of {needed} prompts are labelled in {config.store}; waiting for people (this command "
                "may be stopped, and goes on when it is started again)",
                flush=True,
            )
            said = judged
        await asyncio.sleep(config.poll_s)


def _rankings(store: PreferenceStore, wanted: set[str]) -> list[Ranking]:
    items = store.items()
    kept = (k.judgement for k in store.judgements() if k.judgement.item_id in wanted)
    made = (ranking_of(items[judgement.item_id], judgement) for judgement in kept)
    return [ranking for ranking in made if ranking is not None]
