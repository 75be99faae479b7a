"""A judge at work in a run: its ledger and its budget are the run's, whatever stage asks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, field
from math import comb
from pathlib import Path
from typing import Any

from rlhf_ray.config.judge import JudgeConfig
from rlhf_ray.feedback.records import Item
from rlhf_ray.feedback.store import Incoming, PreferenceStore
from rlhf_ray.judging.asking import Asker, Counts
from rlhf_ray.judging.budget import Budget
from rlhf_ray.judging.comparing import Comparer, Judged
from rlhf_ray.judging.constitution import read_constitution
from rlhf_ray.judging.ledger import Ledger
from rlhf_ray.judging.positions import PositionBias
from rlhf_ray.judging.template import CompareTemplate
from rlhf_ray.judging.verdicts import Opinion
from rlhf_ray.metrics.progress import progress
from rlhf_ray.pipeline.artefacts import write_atomically
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.respondents import endpoint_key, open_respondent, simulated

LEDGER, SUMMARY = "answers.jsonl", "summary.json"


def judge_directory(context: Context) -> Path:
    """Beside the stages, none of which it belongs to: answers outlive a stage that is done again."""
    return context.store.root / "judge"


def check_judge(context: Context) -> None:
    """Raise ConfigError, before anything is started, for a template, constitution, key or simulation that cannot be."""
    judge = context.config.judge
    CompareTemplate.read(judge.template)
    if judge.constitution:
        read_constitution(judge.constitution)
    if judge.kind == "endpoint":
        endpoint_key(judge)
    elif judge.kind == "simulated":
        simulated(context)


@asynccontextmanager
async def open_asker(context: Context) -> AsyncIterator[Asker]:
    """The run's respondent with the run's ledger and budget."""
    judge = context.config.judge
    with closing(open_ledger(context)) as ledger:
        async with open_respondent(context) as respondent:
            yield Asker(respondent, ledger, Budget(judge.budget, ledger.usage), batch_size=judge.batch_size)


def open_ledger(context: Context) -> Ledger:
    return Ledger(judge_directory(context) / LEDGER)


@dataclass
class Work:
    """What a judge has done in this process."""

    judged: int = 0
    ties: int = 0  # items without a decided pair
    unread: int = 0
    left_out: int = 0  # too long to be asked, or under no principle
    opinions: list[Opinion] = field(default_factory=list)

    def add(self, asked: int, judged: Sequence[Judged]) -> None:
        self.judged += len(judged)
        self.left_out += asked - len(judged)
        self.unread += sum(each.judgement.verdict != "ranked" for each in judged)
        self.ties += sum(len(set(each.judgement.ranks)) == 1 for each in judged)
        self.opinions += [opinion for each in judged for opinion in each.opinions.values()]


async def judge_items(context: Context, store: PreferenceStore, items: Mapping[str, Item]) -> dict[str, Any]:
    """Let the judge judge those of ``items`` that it has not judged; all of them must be in the store.

    Judgements go into the store, every question and answer into ``judge/answers.jsonl``, what is to be known of it all
    into ``judge/summary.json``. Raises BudgetError where the budget ends first, with everything kept that was answered.
    """
    judge, work = context.config.judge, Work()
    store.add_annotators([judge.name], "judge")
    done = {each.judgement.item_id for each in store.history() if each.judgement.annotator == judge.name}
    waiting = {item_id: item for item_id, item in items.items() if item_id not in done}
    if waiting:
        async with open_asker(context) as asker:
            await _judge_all(waiting, Comparer(judge, asker, seed=context.config.seed), store, work)
            counts, budget, stopped = asker.counts, asker.budget, asker.stopped
    else:
        with closing(open_ledger(context)) as ledger:
            counts, budget, stopped = Counts(), Budget(judge.budget, ledger.usage), None
    summary = _summary(work, counts, budget, already=len(done & items.keys()))
    write_atomically(judge_directory(context) / SUMMARY, json.dumps(summary, indent=2))
    for line in summary_lines(summary, work):
        print(f"      {line}", flush=True)
    if stopped is not None:
        raise stopped
    return summary


async def _judge_all(items: Mapping[str, Item], comparer: Comparer, store: PreferenceStore, work: Work) -> None:
    """Judge items, as many at a time as make a batch of questions, until all are done or the budget is."""
    asker, waiting = comparer.asker, list(items)
    with progress("Judging", len(waiting), "item") as bar:
        while waiting and asker.stopped is None:
            size = _chunk([items[item_id] for item_id in waiting], comparer.config)
            chunk, waiting = waiting[:size], waiting[size:]
            judged = await comparer.judge({item_id: items[item_id] for item_id in chunk})
            store.add_all([], [Incoming(each.judgement) for each in judged], {})
            work.add(len(chunk) if asker.stopped is None else len(judged), judged)
            bar.advance(len(chunk))


def _chunk(items: Sequence[Item], judge: JudgeConfig) -> int:
    """How many of the next items make a batch of questions; one at the least."""
    questions = 0
    for count, item in enumerate(items):
        questions += 2 * judge.num_votes * comb(len(item.candidates), 2)
        if questions > judge.batch_size:
            return max(1, count)
    return len(items)


def _summary(work: Work, counts: Counts, budget: Budget, *, already: int) -> dict[str, Any]:
    return {
        "judged": work.judged,
        "judged_before": already,
        "ties": work.ties,
        "unread": work.unread,
        "left_out": work.left_out,
        "questions_asked": counts.asked,
        "questions_answered_before": counts.found,
        "questions_too_long": counts.too_long,
        "tokens": counts.usage.tokens,
        "tokens_of_all_attempts": budget.spent.tokens,
        "money_of_all_attempts": budget.money(budget.spent),
        "position_bias": asdict(PositionBias.of(work.opinions)) if work.opinions else None,
    }


def summary_lines(summary: Mapping[str, Any], work: Work) -> list[str]:
    """What people read of it."""
    lines = [
        f"{summary['judged']} items judged, {summary['judged_before']} before; {summary['ties']} without a winner, "
        f"{summary['unread']} unreadable, {summary['left_out']} left out",
        f"{summary['questions_asked']} questions asked, {summary['questions_answered_before']} answered before; "
        f"{summary['tokens']} tokens now, {summary['tokens_of_all_attempts']} and "
        f"{summary['money_of_all_attempts']:.4f} in money over all attempts",
    ]
    return lines + (PositionBias.of(work.opinions).lines() if work.opinions else [])
