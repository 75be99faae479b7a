"""Every detector on one held-out evaluation: numbers by their names in the log, and what later ones are compared to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from rlhf_ray.hacking.conduct import flip_rate, refusal_rates
from rlhf_ray.hacking.evidence import Evaluated, Known, refused, reward_deviation
from rlhf_ray.hacking.language import (
    answer_entropy,
    common_answer,
    novel_share,
    odd_characters,
    repeated_answers,
    unknown_share,
)
from rlhf_ray.hacking.length import (
    explained_by_length,
    indicators,
    length_controlled_win_rate,
    partial_correlation,
)
from rlhf_ray.hacking.turning import certain_fall, share_lost, turning_point
from rlhf_ray.metrics.evaluation import PRINCIPAL_GRADE, GradedResponse
from rlhf_ray.metrics.text import num_words

TOO_FEW = 8  # responses: fewer say nothing about a correlation


@dataclass(frozen=True)
class Past:
    """What an evaluation is held against: the first one's scores and lengths, the best one's gold, gold over KL."""

    scores: Mapping[str, float] = field(default_factory=dict)  # by prompt, of the first evaluation
    words: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)  # gold by prompt, of the best evaluation so far
    kls: tuple[float, ...] = ()  # nats a response, of every evaluation so far; -1 where nobody knows it (LoRA)
    golds: tuple[float, ...] = ()

    def with_(self, evaluated: Evaluated) -> Past:
        """The past once ``evaluated`` belongs to it."""
        responses = evaluated.responses
        golds = _by_prompt(responses, _gold)
        gold = fmean(golds.values()) if golds else math.nan
        kl = fmean(response.kl for response in responses)
        is_best = bool(golds) and (not self.best or gold > fmean(self.best.values()))
        return Past(
            scores=self.scores or _by_prompt(responses, lambda response: response.score),
            words=self.words or _by_prompt(responses, _words),
            best=golds if is_best else self.best,
            kls=(*self.kls, max(0.0, kl) if math.isfinite(kl) else -1.0) if golds else self.kls,
            golds=(*self.golds, gold) if golds else self.golds,
        )

    def state(self) -> dict[str, Any]:
        return {**asdict(self), "kls": list(self.kls), "golds": list(self.golds)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Past:
        return cls(**{**state, "kls": tuple(state["kls"]), "golds": tuple(state["golds"])})


def detected(evaluated: Evaluated, past: Past, known: Known) -> dict[str, float]:
    """Return every measure that the evaluation allows; what it cannot tell (no gold, no kinds ...) is missing.

    ``past`` has seen the evaluations before this one.
    """
    if not evaluated.responses:
        return {}
    return {
        **_verbosity(evaluated.responses, past),
        **{f"style/{name}": fmean(each.change for each in own) for name, own in evaluated.edited.items() if own},
        **_conduct(evaluated, known),
        **_language(evaluated.responses, known),
        **_reward(evaluated.responses, known),
        **_gold_so_far(past.with_(evaluated), _by_prompt(evaluated.responses, _gold)),
    }


def _verbosity(responses: Sequence[GradedResponse], past: Past) -> dict[str, float]:
    scored = [response for response in responses if response.score is not None]
    found: dict[str, float] = {}
    if len(scored) >= TOO_FEW:
        scores = np.array([response.score for response in scored], dtype=np.float64)
        words = np.array([_words(response) for response in scored], dtype=np.float64)
        controls = indicators([response.kind for response in scored])
        golds = [_gold(response) for response in scored]
        if all(gold is not None for gold in golds):
            controls = np.column_stack([controls, np.array(golds, dtype=np.float64)])
        found["hacking/score_length_correlation"] = partial_correlation(scores, words, controls)
        found["hacking/score_explained_by_length"] = explained_by_length(scores, words)
    now, lengths = _by_prompt(responses, lambda response: response.score), _by_prompt(responses, _words)
    both = sorted(now.keys() & past.scores.keys())
    if len(both) >= TOO_FEW:
        wins = np.array([0.5 * (1 + np.sign(now[name] - past.scores[name])) for name in both])
        longer = np.array([lengths[name] - past.words[name] for name in both])
        controlled = length_controlled_win_rate(wins, longer)
        found["hacking/win_rate"] = float(wins.mean())
        found["hacking/length_controlled_win_rate"] = controlled
        found["hacking/wins_by_length"] = float(wins.mean()) - controlled
    return found


def _conduct(evaluated: Evaluated, known: Known) -> dict[str, float]:
    responses = evaluated.responses
    rates = refusal_rates([r.kind for r in responses], [refused(r) for r in responses], known.harmful_kinds)
    flips = flip_rate([twins.answer for twins in evaluated.twins])
    found = {
        "hacking/flip_rate": flips,
        "hacking/over_refusal": rates.over,
        "hacking/under_refusal": rates.under,
        **{f"refusal/{kind}": rate for kind, rate in rates.by_kind.items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def _language(responses: Sequence[GradedResponse], known: Known) -> dict[str, float]:
    texts, prompt_ids = [r.response_text for r in responses], [r.prompt_id for r in responses]
    tokens, kl = sum(r.num_tokens for r in responses), sum(r.kl for r in responses)
    found = {
        "hacking/common_answer": common_answer(texts),
        "hacking/repeated_answers": repeated_answers(texts, prompt_ids),
        "hacking/answer_entropy": answer_entropy(texts),
        "hacking/odd_characters": odd_characters(texts),
    }
    if tokens and math.isfinite(kl):
        found["hacking/kl_per_token"] = kl / tokens
    if known.words:
        found["hacking/unknown_words"] = unknown_share(texts, known.words)
    return found


def _reward(responses: Sequence[GradedResponse], known: Known) -> dict[str, float]:
    """Where the reward model is not to be trusted: its members disagree, or it has never seen such a text."""
    deviations = [value for value in map(reward_deviation, responses) if value is not None]
    found = {"hacking/reward_std": fmean(deviations)} if deviations else {}
    if known.pairs:
        found["hacking/novel_pairs"] = novel_share([r.response_text for r in responses], known.pairs)
    return found


def _gold_so_far(past: Past, golds: Mapping[str, float]) -> dict[str, float]:
    if not past.golds:
        return {}
    found = {
        "hacking/gold_lost": share_lost(past.golds[0], max(past.golds), past.golds[-1]),
        "hacking/gold_fall": certain_fall(past.best, golds),
    }
    turn = turning_point(past.kls, past.golds)
    return {**found, "hacking/gold_peak_kl": turn.kl} if turn and math.isfinite(turn.kl) else found


def _words(response: GradedResponse) -> float:
    return float(num_words(response.response_text))


def _gold(response: GradedResponse) -> float | None:
    return response.grades.get(PRINCIPAL_GRADE)


def _by_prompt(
    responses: Sequence[GradedResponse], measure: Callable[[GradedResponse], float | None]
) -> dict[str, float]:
    """The mean of each prompt's responses; a prompt without the measure is left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        value = measure(response)
        if value is not None:
            values[response.prompt_id].append(value)
    return {prompt_id: fmean(own) for prompt_id, own in values.items()}
