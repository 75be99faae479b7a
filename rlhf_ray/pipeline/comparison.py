"""Stage ``comparison``: people or a judge rank what the SFT model says, or recorded judgements are taken.

What a judge has judged lies in ``comparison/preferences.db``, a preference store: people may review it there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from rlhf_ray.data.jsonl import read_jsonl, write_jsonl
from rlhf_ray.data.recorded import is_heldout
from rlhf_ray.data.task import Split
from rlhf_ray.feedback.records import Candidate, Item, ranking_of
from rlhf_ray.feedback.store import open_store
from rlhf_ray.metrics.progress import progress
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.door import require_apart
from rlhf_ray.pipeline.judging import judge_items
from rlhf_ray.pipeline.sampling import FetchedShard, requests_for, sample
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Message, Prompt, Ranking, Rollout, SamplingSettings, SoftLabel, TextPrompt
from rlhf_ray.roles import Generator
from rlhf_ray.seeds import request_seed
from rlhf_ray.stages.work import TokenizedRanking

PURPOSES: dict[Split, int] = {"train": 101, "heldout": 102}
STORE = "preferences.db"


async def compare(context: Context) -> dict[str, Any]:
    """Write ``comparison/rankings_train.jsonl`` and ``rankings_heldout.jsonl``."""
    results: dict[str, Any] = {}
    if context.samples_comparisons:
        async with context.fleet.scope() as scope:
            generator = await scope.generators(str(policy_path(context)))
            sampled = {split: await _collect(context, scope, generator, split) for split in PURPOSES}
        rankings, results = await labelled(context, sampled)
    else:
        rankings = {split: context.task.rankings(split) for split in PURPOSES}
    if not context.config.comparison.soft_labels:
        rankings = {split: [replace(item, soft=()) for item in items] for split, items in rankings.items()}
    for split, items in rankings.items():
        path = context.directory("comparison") / f"rankings_{split}.jsonl"
        write_rankings(path, items)
        results[split] = str(path)
        results[f"{split}_rankings"] = len(items)
        results[f"{split}_pairs"] = sum(len(item.pairs) for item in items)
    return results


# ------------------------------------------------------------------------------------------------------------- sampling
@dataclass(frozen=True)
class Answered:
    """A prompt with the responses to be compared, as they were sampled."""

    prompt: Prompt
    text: TextPrompt
    item: Item


async def _collect(context: Context, scope: Scope, generator: Generator, split: Split) -> list[Answered]:
    config, tools = context.config.comparison, TextTools.of(context)
    count = config.num_prompts if split == "train" else config.num_heldout_prompts
    prompts, texts, _ = tools.prompts(
        spread(context.task.prompts(split), count), room=context.config.ppo.max_response_tokens
    )
    title = f"Sampling for comparison ({split})"
    shards = await candidates(context, scope, generator, prompts, purpose=PURPOSES[split], title=title)
    return answered(context, tools, prompts, texts, shards)


async def candidates(
    context: Context, scope: Scope, generator: Generator, prompts: Sequence[Prompt], *, purpose: int, title: str
) -> list[FetchedShard]:
    """Sample K responses a prompt, each with the next temperature of the list."""
    config, tools = context.config.comparison, TextTools.of(context)
    samples = config.responses_per_prompt
    requests = requests_for(prompts, samples=samples, seed=context.config.seed, purpose=purpose)
    shards: list[FetchedShard] = []
    with progress(title, len(requests), "response") as bar:
        for number, temperature in enumerate(config.temperatures):
            settings = SamplingSettings(
                temperature=temperature,
                max_tokens=context.config.ppo.max_response_tokens,
                stop_token_ids=tools.stop_token_ids,
            )
            own = [r for r in requests if r.order % samples % len(config.temperatures) == number]
            shards += await sample(scope, generator, own, settings, bar)
    return shards


def answered(
    context: Context,
    tools: TextTools,
    prompts: Sequence[Prompt],
    texts: Sequence[TextPrompt],
    shards: Sequence[FetchedShard],
) -> list[Answered]:
    """Prompts with their responses, in order; ``shards`` may hold those of other prompts too."""
    by_prompt: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in sorted((r for fetched in shards for r in fetched.rollouts), key=lambda r: r.order):
        by_prompt[rollout.prompt_id].append(rollout)
    return [
        Answered(prompt, text, _item(context, tools, text, by_prompt[prompt.prompt_id]))
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _item(context: Context, tools: TextTools, text: TextPrompt, rollouts: Sequence[Rollout]) -> Item:
    temperatures = context.config.comparison.temperatures
    made = [
        Candidate(
            text=tools.decode(rollout.response_ids),
            model=context.finished["start"].key if "start" in context.finished else "sft",
            sampling={"temperature": temperatures[place % len(temperatures)]},
            seed=rollout.seed,
            token_ids=tuple(int(t) for t in rollout.response_ids),
        )
        for place, rollout in enumerate(rollouts)
    ]
    return Item(text, tuple(made))


# -------------------------------------------------------------------------------------------------------------- ranking
async def labelled(
    context: Context, sampled: Mapping[Split, Sequence[Answered]]
) -> tuple[dict[Split, list[Ranking]], dict[str, Any]]:
    """What people say of the responses and, of its share, the judge; with a summary of the judge's work."""
    rankings = {split: by_people(context, own, split) for split, own in sampled.items()}
    if not context.config.judge.is_there:
        return rankings, {}
    judged, summary = await by_judge(context, sampled)
    both = {split: rankings[split] + judged[split] for split in sampled}
    return both, {f"judge_{name}": value for name, value in summary.items()}


def asks_judge(context: Context, asked: Answered, split: Split) -> bool:
    """Whether the judge compares a prompt's responses. Held-out ones are people's, where there are people."""
    judge = context.config.judge
    if not judge.is_there or (split == "heldout" and context.task.has_annotators):
        return False
    seed = context.config.seed
    return not context.task.has_annotators or is_heldout(asked.text.prompt_id, seed=seed, fraction=judge.share)


def by_people(context: Context, sampled: Sequence[Answered], split: Split) -> list[Ranking]:
    """What people say of the prompts that no judge is asked about."""
    rankings: list[Ranking] = []
    for each in sampled:
        if not asks_judge(context, each, split):
            seed = request_seed(context.config.seed, 103, each.prompt.order)
            responses = each.item.candidates
            judged = context.task.rank(each.text, [response.text for response in responses], seed)
            tokens = tuple(response.token_ids for response in responses)
            rankings += [replace(ranking, response_token_ids=tokens) for ranking in judged]
    return rankings


async def by_judge(
    context: Context, sampled: Mapping[Split, Sequence[Answered]]
) -> tuple[dict[Split, list[Ranking]], dict[str, Any]]:
    """What the judge says of the other prompts, by split, and a summary of its work."""
    with open_store(str(context.directory("comparison") / STORE), create=True) as store:
        asked: dict[Split, list[str]] = {
            split: store.add_items(each.item for each in own if asks_judge(context, each, split))
            for split, own in sampled.items()
        }
        known = store.items()
        summary = await judge_items(context, store, known)
        said = {kept.judgement.item_id: kept.judgement for kept in store.judgements()}
    made = {
        split: [ranking_of(known[item_id], said[item_id]) for item_id in item_ids if item_id in said]
        for split, item_ids in asked.items()
    }
    return {split: [each for each in own if each is not None] for split, own in made.items()}, summary


def spread(prompts: Sequence[TextPrompt], count: int) -> list[TextPrompt]:
    """``count`` prompts at even distances, so that every kind keeps its share whatever the order of the list."""
    if len(prompts) <= count:
        return list(prompts)
    return [prompts[i * len(prompts) // count] for i in range(count)]


# ---------------------------------------------------------------------------------------------------------------- files
def write_rankings(path: Path, rankings: Iterable[Ranking]) -> None:
    write_jsonl(path, (asdict(ranking) for ranking in rankings))


def read_rankings(path: Path) -> list[Ranking]:
    """What :func:`write_rankings` wrote."""
    rankings = []
    for record in read_jsonl(path):
        row = cast(dict[str, Any], dict(record.value))
        row["messages"] = tuple(Message(**message) for message in row["messages"])
        row["responses"], row["ranks"] = tuple(row["responses"]), tuple(row["ranks"])
        row["response_token_ids"] = tuple(tuple(ids) for ids in row["response_token_ids"])
        row["soft"] = tuple(SoftLabel(**label) for label in row["soft"])
        rankings.append(Ranking(**row))
    return rankings


@dataclass(frozen=True)
class Comparisons:
    """Both splits of a run's rankings, tokenised and as they were read."""

    train: list[TokenizedRanking]
    heldout: list[TokenizedRanking]
    train_rankings: list[Ranking]
    heldout_rankings: list[Ranking]
    left_out: int  # training rankings that are all ties or too long


def tokenized_comparisons(context: Context, tools: TextTools, axes: Sequence[str] = ()) -> Comparisons:
    """What :func:`compare` left, of the whole and of ``axes``. Raises DataError where a prompt is on both sides."""
    train_rankings = read_rankings(Path(context.results("comparison")["train"]))
    heldout_rankings = read_rankings(Path(context.results("comparison")["heldout"]))
    require_apart(train_rankings, heldout_rankings)
    train, left_out = tools.rankings(train_rankings, axes)
    heldout, _ = tools.rankings(heldout_rankings, axes)
    return Comparisons(train, heldout, train_rankings, heldout_rankings, left_out)
