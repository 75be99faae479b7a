"""Suites on any models: checked at the door, asked where they were not before, graded, compared in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_ray.config.suite import TASK, SuiteConfig
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics.statistics import Interval, ratio_interval
from rlhf_ray.metrics.suites import TextLikelihood, pass_at_k, perplexity
from rlhf_ray.metrics.text import is_refusal
from rlhf_ray.metrics.win_rate import win_rate
from rlhf_ray.pipeline.artefacts import write_atomically
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.judging import check_judge
from rlhf_ray.pipeline.run import chain
from rlhf_ray.pipeline.suite_grading import (
    Grades,
    by_prompt,
    check_functions,
    grade,
    judge_all,
    means,
    pairs_of,
    score_all,
)
from rlhf_ray.pipeline.suite_models import Answered, Model, ask_all, opened, read_all
from rlhf_ray.suites.examinees import Examinee
from rlhf_ray.suites.formats import HARMFUL
from rlhf_ray.suites.items import Suite
from rlhf_ray.suites.kept import Kept
from rlhf_ray.suites.results import Row, markdown_table, measure_rows

KEPT, RESULTS, TABLE, RESPONSES = "answers.jsonl", "results.jsonl", "table.md", "responses"


@dataclass(frozen=True)
class Examination:
    """Who is asked what, against whom; ``target`` is where results are written."""

    suites: tuple[Suite, ...]
    examinees: tuple[Examinee, ...]
    baseline: str
    target: Path
    key: str = ""  # of endpoints

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.examinees]


def take_up_finished(context: Context) -> list[str]:
    """Take up whatever stages a run has left, whatever settings made them; return those with a policy."""
    for stage in chain(context.config):
        left = context.store.read(stage.name)
        if left is not None:
            context.finished[stage.name] = left
    return [name for name, artefact in context.finished.items() if "policy" in artefact.results]


def heldout_suite(context: Context) -> SuiteConfig:
    """What is asked where no suite is named: the run's own held-out prompts, as its evaluation asks them."""
    config = context.config.evaluation
    return SuiteConfig(
        name="heldout",
        num_items=config.num_prompts,
        temperature=config.temperature,
        max_tokens=config.max_response_tokens,
        seed=context.config.seed,
    )


def read_suites(context: Context, configs: Sequence[SuiteConfig]) -> tuple[Suite, ...]:
    """Every suite with its items. Raises ConfigError for one that the run cannot grade, DataError for its records."""
    names = [config.name for config in configs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError("--suite", ", ".join(sorted(twice)), "is named twice", "give each its own `name`")
    suites = tuple(Suite.read(_with_graders(context, config), context.task) for config in configs)
    for suite in suites:
        _require_graders(context, suite.config)
        check_functions(suite)
    if any("judge" in suite.config.graders for suite in suites):
        check_judge(context)
    return suites


def _with_graders(context: Context, config: SuiteConfig) -> SuiteConfig:
    """On the run's own prompts, where nobody is named: the ground truth, and the rewards where there are any."""
    if config.source != TASK or config.graders:
        return config
    return replace(config, graders=("task", "reward") if _lacks_reward(context) == "" else ("task",))


def _require_graders(context: Context, config: SuiteConfig) -> None:
    judge, field = context.config.judge, f"{config.name}: graders"
    if "judge" in config.graders:
        if not judge.is_there:
            raise ConfigError(field, "judge", "needs a judge, and judge.kind is none", "set judge.kind")
        if judge.kind == "simulated" and config.source != TASK:
            rule = "is simulated (judge.kind) and knows what is true of the task's own prompts alone"
            raise ConfigError(field, "judge", rule, "use judge.kind=model or endpoint")
    if "reward" in config.graders and (lacks := _lacks_reward(context)):
        raise ConfigError(field, "reward", lacks, "leave it out, or train the reward model first")


def _lacks_reward(context: Context) -> str:
    """Why nothing can be scored; empty where it can."""
    config = context.config
    if not config.scores_responses:
        return "needs a source of rewards, and the run has none"
    if config.trains_reward_model and "reward_model" not in context.finished:
        return f"needs the run's reward model, and {context.store.root} has none that is finished"
    return "" if "model" in context.finished else f"needs the run's tokenizer, and {context.store.root} has none"


# ------------------------------------------------------------------------------------------------------------ the whole
async def run_suites(context: Context, exam: Examination) -> list[Row]:
    """Ask, grade, compare; write results.jsonl, table.md and every response under ``exam.target``.

    Raises ConfigError at the door, BudgetError where the judge's budget ends: all answers are kept.
    """
    _require_pairs(exam)
    with opened(context, exam.examinees, key=exam.key) as models, closing(Kept(exam.target / KEPT)) as kept:
        asking = [suite for suite in exam.suites if suite.config.kind != "text"]
        wanted = await ask_all(context, asking, models, kept)
        for (suite_name, name), each in wanted.items():
            if each.too_long:
                print(
                    f"      {suite_name}: {each.too_long} prompts do not fit into {name} and are left out", flush=True
                )
        answered = {place: each.answers(kept) for place, each in wanted.items()}
        graded = {
            (suite.name, name): grade(context, suite, answered[suite.name, name]) for suite in asking for name in models
        }
        await _score(context, exam, answered, graded, kept)
        texts = await read_all(context, [s for s in exam.suites if s.config.kind == "text"], models, kept)
        rows = []
        for suite in exam.suites:
            rows += await _rows(context, exam, suite, models, answered, graded, texts)
        _write(exam, rows, answered, graded)
    return rows


def _require_pairs(exam: Examination) -> None:
    for suite in exam.suites:
        if "judge" in suite.config.graders and len(exam.examinees) < 2:
            rule = "compares with the baseline, and one model is asked"
            raise ConfigError(f"{suite.name}: graders", "judge", rule, "name another one with --model")


async def _score(
    context: Context,
    exam: Examination,
    answered: Mapping[tuple[str, str], list[Answered]],
    graded: Mapping[tuple[str, str], list[Grades]],
    kept: Kept,
) -> None:
    """Add ``suite/score`` to the grades of suites that ask for it; the servers start once for all of them."""
    places = [(suite.name, name) for suite in exam.suites if "reward" in suite.config.graders for name in exam.names]
    everything = [each for place in places for each in answered[place]]
    if not everything:
        return
    scores = iter(await score_all(context, everything, kept))
    for place in places:
        for own in graded[place]:
            if (score := next(scores)) is not None:
                own["suite/score"] = score


# ----------------------------------------------------------------------------------------------------------------- rows
async def _rows(
    context: Context,
    exam: Examination,
    suite: Suite,
    models: Mapping[str, Model],
    answered: Mapping[tuple[str, str], list[Answered]],
    graded: Mapping[tuple[str, str], list[Grades]],
    texts: Mapping[tuple[str, str], list[TextLikelihood]],
) -> list[Row]:
    """Everything that one suite says, its own measures first."""
    if suite.config.kind == "text":
        return _text_rows(
            exam, suite, {name: texts[suite.name, name] for name in models if (suite.name, name) in texts}
        )
    own = {name: answered[suite.name, name] for name in models}
    rows: list[Row] = []
    if "judge" in suite.config.graders:
        rows += await _win_rows(context, exam, suite, own)
    if suite.config.kind == "refusals":
        rows += _refusal_rows(exam, suite, own)
    values = {name: by_prompt(own[name], graded[suite.name, name]) for name in models}
    for k in suite.config.pass_at:
        right = {name: values[name].get("suite/accuracy", {}) for name in models}
        passed = {
            name: {p: pass_at_k(len(each), round(sum(each)), k) for p, each in mine.items() if len(each) >= k}
            for name, mine in right.items()
        }
        rows += measure_rows(suite.name, f"pass_at/{k}", passed, exam.baseline)
    last = ("suite/words", "suite/finished")
    measures = {measure: None for mine in values.values() for measure in mine}
    for measure in [*(m for m in measures if m not in last), *last]:
        per_model = {name: means(values[name].get(measure, {})) for name in models}
        rows += measure_rows(suite.name, measure, per_model, exam.baseline)
    return rows


async def _win_rows(
    context: Context, exam: Examination, suite: Suite, answered: Mapping[str, Sequence[Answered]]
) -> list[Row]:
    baseline = answered[exam.baseline]
    pairs = {name: pairs_of(own, baseline) for name, own in answered.items() if name != exam.baseline}
    rows = []
    for name, judged in (await judge_all(context, pairs)).items():
        found = win_rate(judged)
        if found.unread:
            print(f"      {suite.name}: {found.unread} pairs of {name} without a readable verdict", flush=True)
        covered = Interval(found.length_covered, math.nan, math.nan, len(judged) - found.unread)
        controlled = found.length_controlled
        rows += [
            Row(suite.name, name, "suite/win_rate", found.win_rate, _from_even(found.win_rate)),
            Row(suite.name, name, "suite/length_controlled_win_rate", controlled, _from_even(controlled)),
            Row(suite.name, name, "suite/length_covered", covered),
            Row(suite.name, name, "suite/judge_consistency", found.consistent),
        ]
    return rows


def _from_even(share: Interval) -> Interval:
    return Interval(share.value - 0.5, share.low - 0.5, share.high - 0.5, share.count)


def _refusal_rows(exam: Examination, suite: Suite, answered: Mapping[str, Sequence[Answered]]) -> list[Row]:
    rows = []
    for kind in sorted({prompt.kind for prompt in suite.prompts}):
        measure = f"suite/{HARMFUL if kind == HARMFUL else 'harmless'}_refused"
        values = {
            name: means(
                by_prompt(
                    [each for each in own if each.prompt.kind == kind],
                    [{measure: float(is_refusal(each.response.text))} for each in own if each.prompt.kind == kind],
                ).get(measure, {})
            )
            for name, own in answered.items()
        }
        rows += measure_rows(suite.name, measure, values, exam.baseline)
    return rows


def _text_rows(exam: Examination, suite: Suite, texts: Mapping[str, Sequence[TextLikelihood]]) -> list[Row]:
    """Differences are paired by text: of nats a token only where both models cut the text into as many."""
    rows = []
    base = texts.get(exam.baseline, ())
    for name, own in texts.items():
        found, pairs = perplexity(own), list(zip(own, base, strict=False)) if name != exam.baseline else []
        nats = [theirs.logprob - ours.logprob for ours, theirs in pairs]
        per_byte = ratio_interval(nats, [ours.num_bytes * math.log(2) for ours, _ in pairs]) if pairs else None
        same = bool(pairs) and all(ours.num_tokens == theirs.num_tokens for ours, theirs in pairs)
        per_token = ratio_interval(nats, [float(ours.num_tokens) for ours, _ in pairs]) if same else None
        rows += [
            Row(suite.name, name, "suite/bits_per_byte", found.bits_per_byte, per_byte),
            Row(suite.name, name, "suite/nats_per_token", found.per_token, per_token),
            Row(suite.name, name, "suite/perplexity", found.perplexity),
        ]
    order = {row.measure: place for place, row in reversed(list(enumerate(rows)))}
    return sorted(rows, key=lambda row: order[row.measure])


def _write(
    exam: Examination,
    rows: Sequence[Row],
    answered: Mapping[tuple[str, str], Sequence[Answered]],
    graded: Mapping[tuple[str, str], Sequence[Grades]],
) -> None:
    write_jsonl(exam.target / RESULTS, (row.as_dict() for row in rows))
    write_atomically(exam.target / TABLE, markdown_table(rows, exam.names, exam.baseline))
    for (suite, name), own in answered.items():
        directory = exam.target / RESPONSES / suite
        directory.mkdir(parents=True, exist_ok=True)
        lines = zip(own, graded[suite, name], strict=True)
        write_jsonl(directory / f"{name}.jsonl", (_line(each, grades) for each, grades in lines))


def _line(each: Answered, grades: Grades) -> dict[str, object]:
    """A response for people, and for `rlhf-ray feedback add`."""
    return {
        "prompt": [{"role": message.role, "content": message.content} for message in each.prompt.messages],
        "response": each.response.text,
        "id": each.prompt.prompt_id,
        "kind": each.prompt.kind,
        "sample": each.sample,
        "tokens": each.response.num_tokens,
        "finished": each.response.finished,
        "grades": grades,
    }
