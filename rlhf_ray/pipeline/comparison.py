"""Stage ``comparison``: people rank responses that the SFT model sampled, or their recorded judgements are taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from rlhf_ray.data.jsonl import read_jsonl, write_jsonl
from rlhf_ray.data.task import Split
from rlhf_ray.driver import request_seed
from rlhf_ray.metrics.progress import progress
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.door import require_apart
from rlhf_ray.pipeline.sampling import requests_for, sample
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Message, Prompt, Ranking, Rollout, SamplingSettings, TextPrompt
from rlhf_ray.roles import Generator
from rlhf_ray.stages.work import TokenizedRanking

PURPOSES: dict[Split, int] = {"train": 101, "heldout": 102}


async def compare(context: Context) -> dict[str, Any]:
    """Write ``comparison/rankings_train.jsonl`` and ``rankings_heldout.jsonl``."""
    if context.task.has_annotators:
        async with context.fleet.scope() as scope:
            generator = await scope.generators(str(policy_path(context)))
            rankings = {split: await _collect(context, scope, generator, split) for split in PURPOSES}
    else:
        rankings = {split: context.task.rankings(split) for split in PURPOSES}
    results: dict[str, Any] = {}
    for split, items in rankings.items():
        path = context.directory("comparison") / f"rankings_{split}.jsonl"
        write_rankings(path, items)
        results[split] = str(path)
        results[f"{split}_rankings"] = len(items)
        results[f"{split}_pairs"] = sum(len(item.pairs) for item in items)
    return results


async def _collect(context: Context, scope: Scope, generator: Generator, split: Split) -> list[Ranking]:
    """Sample K responses a prompt, each with the next temperature of the list, and let annotators rank them."""
    config, tools = context.config.comparison, TextTools.of(context)
    room = context.config.ppo.max_response_tokens
    count = config.num_prompts if split == "train" else config.num_heldout_prompts
    prompts, texts, _ = tools.prompts(spread(context.task.prompts(split), count), room=room)
    by_prompt: dict[str, list[Rollout]] = defaultdict(list)
    requests = requests_for(
        prompts, samples=config.responses_per_prompt, seed=context.config.seed, purpose=PURPOSES[split]
    )
    with progress(f"Sampling for comparison ({split})", len(requests), "response") as bar:
        for number, temperature in enumerate(config.temperatures):
            settings = SamplingSettings(temperature=temperature, max_tokens=room, stop_token_ids=tools.stop_token_ids)
            own = [r for r in requests if r.order % config.responses_per_prompt % len(config.temperatures) == number]
            for fetched in await sample(scope, generator, own, settings, bar):
                for rollout in fetched.rollouts:
                    by_prompt[rollout.prompt_id].append(rollout)
    return _ranked(context, tools, prompts, texts, by_prompt)


def _ranked(
    context: Context,
    tools: TextTools,
    prompts: Sequence[Prompt],
    texts: Sequence[TextPrompt],
    by_prompt: dict[str, list[Rollout]],
) -> list[Ranking]:
    rankings: list[Ranking] = []
    for prompt, text in zip(prompts, texts, strict=True):
        rollouts = sorted(by_prompt[prompt.prompt_id], key=lambda r: r.order)
        responses = [tools.decode(r.response_ids) for r in rollouts]
        tokens = tuple(tuple(int(t) for t in r.response_ids) for r in rollouts)
        seed = request_seed(context.config.seed, 103, prompt.order)
        judged = context.task.rank(text, responses, seed)
        rankings += [replace(ranking, response_token_ids=tokens) for ranking in judged]
    return rankings


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
        rankings.append(Ranking(**row))
    return rankings


@dataclass(frozen=True)
class Comparisons:
    """Both splits of a run's rankings, tokenised; ``heldout_rankings`` are the held-out ones as they were read."""

    train: list[TokenizedRanking]
    heldout: list[TokenizedRanking]
    heldout_rankings: list[Ranking]
    left_out: int  # training rankings that are all ties or too long


def tokenized_comparisons(context: Context, tools: TextTools) -> Comparisons:
    """What :func:`compare` left. Raises DataError where a prompt stands on both sides."""
    train_rankings = read_rankings(Path(context.results("comparison")["train"]))
    heldout_rankings = read_rankings(Path(context.results("comparison")["heldout"]))
    require_apart(train_rankings, heldout_rankings)
    train, left_out = tools.rankings(train_rankings)
    heldout, _ = tools.rankings(heldout_rankings)
    return Comparisons(train, heldout, heldout_rankings, left_out)
