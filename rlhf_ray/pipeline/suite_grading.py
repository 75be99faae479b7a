"""Grades of the answers to suites: by rules and functions, by the run's ground truth, its rewards and its judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from statistics import fmean

import numpy as np

from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.config.suite import RULES
from rlhf_ray.data.chat import tokenize_prompt, tokenize_response
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.feedback.records import Candidate, Item
from rlhf_ray.judging.comparing import Comparer
from rlhf_ray.metrics.progress import progress
from rlhf_ray.metrics.text import num_words
from rlhf_ray.metrics.win_rate import JudgedPair
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.evaluation import start_rewards_for, total_score
from rlhf_ray.pipeline.judging import open_asker
from rlhf_ray.pipeline.lineage import fingerprint, stage_settings
from rlhf_ray.pipeline.reward_model import own_reward_models
from rlhf_ray.pipeline.suite_models import Answered, batched
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Rollout
from rlhf_ray.rewards.process import FunctionLoadError
from rlhf_ray.rewards.sources import open_source
from rlhf_ray.rewards.texts import PromptText, ResponseText
from rlhf_ray.roles import RolloutShard
from rlhf_ray.suites.items import Suite
from rlhf_ray.suites.kept import Kept, key_of
from rlhf_ray.suites.rules import is_right

AT_A_TIME = 64
Grades = dict[str, float]


def grade(context: Context, suite: Suite, answered: Sequence[Answered]) -> list[Grades]:
    """What needs no model: words, finished, the task's grades, rules and functions, by the registry's names."""
    graded: list[Grades] = []
    config = suite.config
    for each in answered:
        text = each.response.text
        own: Grades = {"suite/words": float(num_words(text)), "suite/finished": float(each.response.finished)}
        if config.kind == "questions" and config.grader in RULES:
            own["suite/accuracy"] = float(is_right(config.grader, each.prompt, text))
        if "task" in config.graders:
            own |= {f"grade/{name}": value for name, value in context.task.grade(each.prompt, text).items()}
        graded.append(own)
    for function in config.functions:
        measure = "suite/accuracy" if config.kind == "questions" else f"grade/{function.rpartition(':')[2]}"
        for own, value in zip(graded, _by_function(suite, function, answered), strict=True):
            own |= {} if value is None else {measure: value}
    return graded


def _by_function(suite: Suite, function: str, answered: Sequence[Answered]) -> list[float | None]:
    """What a function says of each response, in a process of its own; None where it says nothing or fails.

    Raises ConfigError for one that cannot be loaded, DataError where it fails on every response.
    """
    config = suite.config
    source = RewardSourceConfig(
        kind="function", function=function, arguments=dict(config.arguments), timeout_s=config.timeout_s
    )
    texts = [ResponseText(PromptText.of(each.prompt), each.response.text) for each in answered]
    try:
        with closing(open_source(source, seed=0)) as reward:
            graded = [one for some in batched(texts, AT_A_TIME) for one in reward.grade(some)]
    except FunctionLoadError as error:
        rule = f"cannot be used: {error.reason}"
        raise ConfigError(f"{suite.name}: grader", function, rule, "mend it, or its arguments") from error
    if graded and all(one.failed for one in graded):
        raise DataError(f"{suite.name}: {function} fails on every response: {graded[0].failed}")
    return [None if one.failed else one.score for one in graded]


def check_functions(suite: Suite) -> None:
    """Load each function before anything starts. Raises ConfigError for one that cannot be."""
    for function in suite.config.functions:
        _by_function(suite, function, ())


def by_prompt(answered: Sequence[Answered], graded: Sequence[Grades]) -> dict[str, dict[str, list[float]]]:
    """Every measure by prompt, over its samples in order: measure -> prompt id -> values."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each, own in zip(answered, graded, strict=True):
        for measure, value in own.items():
            values[measure][each.prompt.prompt_id].append(value)
    return values


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {prompt_id: fmean(own) for prompt_id, own in values.items()}


# -------------------------------------------------------------------------------------------------------------- rewards
async def score_all(context: Context, answered: Sequence[Answered], kept: Kept) -> list[float | None]:
    """What the run's sources of rewards say of each response, read with the run's own tokens; None where nothing.

    Any model's text can be scored, also an endpoint's. Scores of before are taken up.
    """
    settings = stage_settings(context.config, ("rewards", "reward_server.dtype"))
    identity = [settings, [fingerprint(path) for path in own_reward_models(context)]]
    keys = [
        key_of("score", identity, [str(m) for m in each.prompt.messages], each.response.text, each.response.finished)
        for each in answered
    ]
    missing = {key: each for key, each in zip(keys, answered, strict=True) if key not in kept}
    rollouts = _rollouts(TextTools.of(context), missing)
    for key in missing.keys() - rollouts.keys():
        kept.append(key, {"score": None})
    if rollouts:
        prompts = {key: PromptText.of(each.prompt) for key, each in missing.items()}
        async with context.fleet.scope() as scope:
            rewards = await start_rewards_for(context, scope, prompts)
            with progress("Scoring", len(rollouts), "response") as bar:
                for some in batched(rollouts.items(), AT_A_TIME):
                    block = tuple(rollout for _, rollout in some)
                    shard = RolloutShard(tuple(rollout.summary for rollout in block), await scope.put(block))
                    for (key, _), score in zip(some, await rewards.score(shard), strict=True):
                        kept.append(key, {"score": total_score(score)})
                    bar.advance(len(some))
    return [(kept.get(key) or {}).get("score") for key in keys]


def _rollouts(tools: TextTools, missing: Mapping[str, Answered]) -> dict[str, Rollout]:
    """Responses as if the run's policy had sampled them; those that do not fit into the run's lengths are left out."""
    made: dict[str, Rollout] = {}
    for key, each in missing.items():
        try:
            prompt = tokenize_prompt(tools.tokenizer, each.prompt.messages)
            response = tokenize_response(tools.tokenizer, each.response.text, add_eos=each.response.finished)
        except DataError:  # it spells out the run's EOS
            continue
        if 0 < len(response) <= tools.max_length - len(prompt):
            made[key] = Rollout(
                rollout_id=key,
                prompt_id=key,
                order=len(made),
                prompt_ids=prompt,
                response_ids=response,
                rollout_logprobs=np.zeros(len(response), dtype=np.float32),
                policy_versions=np.zeros(len(response), dtype=np.int32),
                finish_reason="stop" if each.response.finished else "length",
                seed=0,
            )
    return made


# ---------------------------------------------------------------------------------------------------------------- judge
Pair = tuple[Answered, Answered]  # the treated model's response and the baseline's, to one prompt


def pairs_of(treated: Sequence[Answered], baseline: Sequence[Answered]) -> list[Pair]:
    """Responses to the same prompt with the same number among its samples."""
    known = {(each.prompt.prompt_id, each.sample): each for each in baseline}
    return [
        (each, known[each.prompt.prompt_id, each.sample])
        for each in treated
        if (each.prompt.prompt_id, each.sample) in known
    ]


async def judge_all(context: Context, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, list[JudgedPair]]:
    """The judge's verdict of every pair, by the treated model's name; equal texts tie without a question.

    The judge's ledger and budget are the run's. Raises BudgetError where the budget ends: what was answered is kept.
    """
    judge = context.config.judge
    judged: dict[str, list[JudgedPair]] = {}
    async with open_asker(context) as asker:
        comparer = Comparer(judge, asker, seed=context.config.seed)
        for name, own in pairs.items():
            items = {_pair_id(pair): _item(pair) for pair in own if pair[0].response.text != pair[1].response.text}
            orders: dict[str, tuple[float | None, float | None]] = {}
            with progress(f"Judging {name}", len(items), "pair") as bar:
                for some in batched(items.items(), max(1, judge.batch_size // (2 * judge.num_votes))):
                    for each in await comparer.judge(dict(some)):
                        orders[each.item_id] = each.opinions[0, 1].by_order or (None, None)
                    if asker.stopped is not None:
                        raise asker.stopped
                    bar.advance(len(some))
            judged[name] = [_judged(pair, orders) for pair in own]
    return judged


def _item(pair: Pair) -> Item:
    return Item(pair[0].prompt, (Candidate(pair[0].response.text), Candidate(pair[1].response.text)))


def _pair_id(pair: Pair) -> str:
    return f"{pair[0].prompt.prompt_id}/{pair[0].sample}"


def _judged(pair: Pair, orders: Mapping[str, tuple[float | None, float | None]]) -> JudgedPair:
    texts = [each.response.text for each in pair]
    forward, backward = (0.5, 0.5) if texts[0] == texts[1] else orders.get(_pair_id(pair), (None, None))
    return JudgedPair(pair[0].prompt.prompt_id, forward, backward, len(texts[0]), len(texts[1]))
