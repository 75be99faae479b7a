"""Held-out evaluation: what is kept of a response, what is said of a model, and how two models compare."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

from rlhf_ray.errors import DataError
from rlhf_ray.metrics.statistics import (
    Interval,
    difference_interval,
    mean_interval,
    proportion_interval,
    ratio_interval,
)
from rlhf_ray.metrics.text import distinct_n, repetition

ALL_KINDS = "all"
PRINCIPAL_GRADE = "gold"
QUANTITIES = ("score", "kl_per_response", "tokens", "repetition")  # never a yes or a no, even where all are 0


@dataclass(frozen=True)
class GradedResponse:
    """One response to a held-out prompt, with all that is measured of it."""

    prompt_id: str
    kind: str
    prompt_text: str
    response_text: str
    grades: Mapping[str, float]  # by the task; `gold` is the principal one. A task may grade some prompts only
    score: float | None  # what PPO follows, most often a reward model; None where it could not be scored
    kl: float  # nats over the response: sum of log policy - log reference
    num_tokens: int  # sampled tokens, EOS included
    finished: bool  # ended with a stop token


Measure: TypeAlias = Callable[[GradedResponse], float | None]  # None: this response was not graded so


@dataclass(frozen=True)
class ModelSummary:
    """One model on the prompts of one kind. An interval's unit is the prompt: its responses are averaged first.

    ``measures`` holds, in this order: the task's grades under their own names, then score (where anything was scored),
    kl_per_response, kl_per_token, tokens, finished, repetition. ``distinct_2`` is the share of different word pairs in
    all responses.
    """

    kind: str
    num_prompts: int
    num_responses: int
    measures: Mapping[str, Interval]
    distinct_2: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts. ``differences`` is treated - baseline by measure.

    wins, ties and losses count prompts by the principal measure: gold, or the score where a task has no gold. The
    score's difference is NaN where nothing could be scored.
    """

    kind: str
    num_prompts: int
    differences: Mapping[str, Interval]
    wins: int
    ties: int
    losses: int


def summarise(responses: Sequence[GradedResponse]) -> dict[str, ModelSummary]:
    """Return the summary over all kinds, under the key ``all``, then one of each kind by name.

    A single kind gets no line of its own: it would repeat the first.
    """
    return {kind: _summarise_kind(kind, chosen) for kind, chosen in _by_kind(responses).items()}


def compare(treated: Sequence[GradedResponse], baseline: Sequence[GradedResponse]) -> dict[str, Comparison]:
    """Return the paired comparison over all kinds, under the key ``all``, then of each kind by name.

    Raises:
        DataError: the two were not given the same prompts, or none.
    """
    if not treated:
        raise DataError("there is no response to compare; evaluation.num_prompts must be 1 or more")
    ours, theirs = {r.prompt_id for r in treated}, {r.prompt_id for r in baseline}
    if ours != theirs:
        raise DataError(
            f"a paired comparison needs the same prompts: {len(ours - theirs)} are only in the first, "
            f"{len(theirs - ours)} only in the second; evaluate both models on one list"
        )
    kinds, others = _by_kind(treated), _by_kind(baseline)
    return {kind: _compare_kind(kind, chosen, others[kind]) for kind, chosen in kinds.items()}


def _by_kind(responses: Sequence[GradedResponse]) -> dict[str, list[GradedResponse]]:
    kinds: dict[str, list[GradedResponse]] = defaultdict(list)
    for response in responses:
        kinds[response.kind].append(response)
    return {ALL_KINDS: list(responses)} | ({kind: kinds[kind] for kind in sorted(kinds)} if len(kinds) > 1 else {})


# ------------------------------------------------------------------------------------------------------------- measures
def _grade(name: str) -> Measure:
    return lambda response: response.grades.get(name)


def _measures(responses: Sequence[GradedResponse]) -> dict[str, Measure]:
    """Return every measure of a single response, by name; the principal grade comes first."""
    names = {name for response in responses for name in response.grades}
    ordered = sorted(names, key=lambda name: (name != PRINCIPAL_GRADE, name))
    common: dict[str, Measure] = {
        "score": lambda response: response.score,
        "kl_per_response": lambda response: response.kl,
        "tokens": lambda response: float(response.num_tokens),
        "finished": lambda response: float(response.finished),
        "repetition": lambda response: repetition(response.response_text, 3),
    }
    if taken := names & set(common):
        raise DataError(f"grades {sorted(taken)} have names that every task's report uses; call them something else")
    return {name: _grade(name) for name in ordered} | common


def _per_prompt(responses: Iterable[GradedResponse], measure: Measure) -> dict[str, float]:
    """Return the mean of each prompt's responses; a prompt that the task did not grade so is left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        value = measure(response)
        if value is not None:
            values[response.prompt_id].append(value)
    return {prompt_id: fmean(values[prompt_id]) for prompt_id in sorted(values)}


def _paired(
    treated: Sequence[GradedResponse], baseline: Sequence[GradedResponse], measure: Measure
) -> tuple[list[float], list[float]]:
    ours, theirs = _per_prompt(treated, measure), _per_prompt(baseline, measure)
    both = [prompt_id for prompt_id in ours if prompt_id in theirs]
    return [ours[prompt_id] for prompt_id in both], [theirs[prompt_id] for prompt_id in both]


def _interval(name: str, values: Sequence[float]) -> Interval:
    """Wilson's interval for a yes or a no (finished, or a grade of 0 and 1 only), the bootstrap for anything else."""
    if name not in QUANTITIES and values and all(value in (0.0, 1.0) for value in values):
        return proportion_interval(sum(values), len(values))
    return mean_interval(values)


def _summarise_kind(kind: str, responses: Sequence[GradedResponse]) -> ModelSummary:
    intervals: dict[str, Interval] = {}
    for name, measure in _measures(responses).items():
        values = list(_per_prompt(responses, measure).values())
        if values:
            intervals[name] = _interval(name, values)
        if name == "kl_per_response":
            intervals["kl_per_token"] = _kl_per_token(responses)
    return ModelSummary(
        kind=kind,
        num_prompts=len({response.prompt_id for response in responses}),
        num_responses=len(responses),
        measures=intervals,
        distinct_2=distinct_n([response.response_text for response in responses], 2),
    )


def _kl_per_token(responses: Sequence[GradedResponse]) -> Interval:
    """Sum of KL / sum of tokens; the prompt is the unit of resampling."""
    kl = _per_prompt(responses, lambda response: response.kl)
    tokens = _per_prompt(responses, lambda response: float(response.num_tokens))
    sampled = [prompt_id for prompt_id in kl if tokens[prompt_id] > 0]
    return ratio_interval([kl[prompt_id] for prompt_id in sampled], [tokens[prompt_id] for prompt_id in sampled])


def _compare_kind(kind: str, treated: Sequence[GradedResponse], baseline: Sequence[GradedResponse]) -> Comparison:
    pairs = {name: _paired(treated, baseline, measure) for name, measure in _measures([*treated, *baseline]).items()}
    judged = list(zip(*pairs.get(PRINCIPAL_GRADE, pairs["score"]), strict=True))
    return Comparison(
        kind=kind,
        num_prompts=len({response.prompt_id for response in treated}),
        differences={name: difference_interval(*p) for name, p in pairs.items() if p[0] or name == "score"},
        wins=sum(ours > theirs for ours, theirs in judged),
        ties=sum(ours == theirs for ours, theirs in judged),
        losses=sum(ours < theirs for ours, theirs in judged),
    )


# ---------------------------------------------------------------------------------------------------------------- files
def write_graded(path: Path, responses: Iterable[GradedResponse]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(asdict(response) | {"grades": dict(response.grades)}) for response in responses)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_graded(path: Path) -> list[GradedResponse]:
    """Read what :func:`write_graded` wrote.

    Raises:
        DataError: a line is not a graded response; the message holds the file and the line.
    """
    responses = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            responses.append(GradedResponse(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{number} is not a graded response ({error})") from error
    return responses
