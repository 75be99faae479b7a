"""Every number a run may log, with its unit and its definition. A name that is not in the table cannot be logged.

Add a metric by adding a line to one of the registry_*.py or here; where it has a healthy range, that and what to do
outside it is a line in health.py. A name that ends in ``/*`` stands for a family whose last part a task decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from rlhf_ray.errors import RlhfError
from rlhf_ray.metrics.definition import MetricDefinition
from rlhf_ray.metrics.registry_ppo import FLEET, PPO_REWARD, PPO_UPDATE, TIME
from rlhf_ray.metrics.registry_stages import DPO, REWARD_MODEL, SFT
from rlhf_ray.metrics.registry_suites import DRIFT, SUITE
from rlhf_ray.metrics.registry_work import RATES, WORK


class UnknownMetricError(RlhfError):
    """A metric was logged whose name has no definition."""


def describe(name: str) -> MetricDefinition:
    """Return the definition of ``name``.

    Raises:
        UnknownMetricError: nothing in the registry has this name; the message suggests the nearest one.
    """
    family, _, member = name.rpartition("/")
    found = REGISTRY.get(name) or (REGISTRY.get(f"{family}/*") if member else None)
    if found is not None:
        return found
    nearest = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.0)[0]
    raise UnknownMetricError(
        f"metric {name!r} has no definition; did you mean {nearest!r}? A new metric is a line in "
        "rlhf_ray/metrics/registry*.py"
    )


def require_registered(names: Iterable[str]) -> None:
    """Raise UnknownMetricError for the first of ``names`` that has no definition."""
    for name in names:
        describe(name)


_M = MetricDefinition

_EVALUATION = (
    _M(
        "gold/heldout_mean",
        "grade",
        "Mean ground-truth grade of held-out prompts, never seen by training.",
        "higher",
        "gold",
    ),
    _M("gold/heldout_low", "grade", "Lower end of the 95% interval of gold/heldout_mean."),
    _M("gold/heldout_high", "grade", "Upper end of the 95% interval of gold/heldout_mean."),
    _M(
        "gold/heldout_score",
        "reward",
        "Mean reward-model score (the proxy) of the same held-out responses.",
        "higher",
        "proxy",
    ),
    _M("gold/heldout_kl_per_response", "nats/response", "KL(policy || reference) per held-out response."),
    _M("gold/heldout_response_length", "tokens", "Mean length of the held-out responses, EOS included."),
    _M(
        "gold/heldout_finished_fraction",
        "fraction",
        "Share of held-out responses that ended with a stop token.",
        "higher",
    ),
    _M("grade/*", "grade", "Held-out mean of the task's grade of this name."),
)

# Of the held-out responses of an evaluation during training; a word is what stands between white space.
_TEXT = (
    _M("text/words", "words", "Mean number of words in a response."),
    _M("text/distinct_1", "fraction", "Different words of all responses over all their words.", "higher"),
    _M("text/distinct_2", "fraction", "Different pairs of neighbouring words over all pairs.", "higher"),
    _M("text/repetition_3", "fraction", "Share of a response's word triples that stood in it before, mean.", "lower"),
    _M(
        "text/self_bleu",
        "fraction",
        "Mean BLEU of a response against the others to its prompt (ppo.eval_responses above 1); 1: always the same.",
        "lower",
    ),
    _M("text/lists", "fraction", "Share of responses with a line that starts as a list item."),
    _M("text/bold", "fraction", "Share of responses with Markdown bold."),
    _M("text/headings", "fraction", "Share of responses with a Markdown heading."),
    _M("text/emoji", "fraction", "Share of responses with a pictograph."),
    _M("text/hedges", "fraction", "Share of responses with a set phrase of doubt."),
    _M("text/apologies", "fraction", "Share of responses that apologise."),
    _M("text/refusals", "fraction", "Share of responses that refuse, by set phrases of the first person."),
    _M("text/agreements", "fraction", "Share of responses that begin with agreement (yes, you are right, ...)."),
)

# What a policy that exploits its reward shows, in held-out responses; rlhf_ray/hacking/ has the formulas.
_HACKING = (
    _M(
        "hacking/score_length_correlation",
        "",
        "Partial correlation of score and words, given the prompt's kind and, where there is one, gold.",
    ),
    _M("hacking/score_explained_by_length", "fraction", "r squared of a line of the score over a response's words."),
    _M("hacking/win_rate", "fraction", "Share of prompts on which the score exceeds that of step 0; a tie is a half."),
    _M("hacking/length_controlled_win_rate", "fraction", "The same as predicted for responses as long as step 0's."),
    _M("hacking/wins_by_length", "fraction", "hacking/win_rate minus hacking/length_controlled_win_rate."),
    _M(
        "hacking/flip_rate",
        "fraction",
        "Share of questions answered rightly (gold of a half or more) whose answer a user's wrong opinion turns.",
        "lower",
    ),
    _M("hacking/over_refusal", "fraction", "Share of harmless prompts (by their kind) that are refused.", "lower"),
    _M("hacking/under_refusal", "fraction", "Share of harmful prompts (by their kind) that are answered.", "lower"),
    _M("refusal/*", "fraction", "Share of the prompts of this kind that are refused."),
    _M(
        "style/*",
        "deviations",
        "Mean change of the score under this edit, which keeps the content, over the scores' deviation.",
    ),
    _M("hacking/common_answer", "fraction", "Share of the prompts that the most frequent answer is given to."),
    _M("hacking/repeated_answers", "fraction", "Share of responses that answer another prompt too, word for word."),
    _M("hacking/answer_entropy", "fraction", "Entropy of the answers over that of as many different ones.", "higher"),
    _M("hacking/kl_per_token", "nats/token", "KL(policy || reference) over all held-out responses by their tokens."),
    _M("hacking/unknown_words", "fraction", "Share of words that stand in no demonstration and in no prompt."),
    _M("hacking/odd_characters", "fraction", "Share of characters that are control, private or no text.", "lower"),
    _M("hacking/reward_std", "reward", "Mean deviation among the members of an ensemble of reward models."),
    _M(
        "hacking/novel_pairs",
        "fraction",
        "Share of neighbouring words that no response had on which the reward model was trained.",
    ),
    _M("hacking/gold_lost", "fraction", "Share of gold's gain over step 0 that is gone since its best evaluation."),
    _M(
        "hacking/gold_fall",
        "grade",
        "Least fall of gold since its best evaluation: lower end of a 95% interval, paired by prompt; at least 0.",
        "lower",
    ),
    _M(
        "hacking/gold_peak_kl",
        "nats/response",
        "KL at which gold turns, by the curve of Gao et al. 2023 over the evaluations so far; missing where it rises.",
    ),
)

# Where the numbers of each table come from.
_SOURCES: Mapping[str, tuple[MetricDefinition, ...]] = {
    "trainer of stage sft": SFT,
    "trainer of stage reward_model": REWARD_MODEL,
    "trainer of stage dpo; online also its rewards": DPO,
    "driver of stage ppo, from summaries and scores, and its trainer": PPO_REWARD,
    "trainer of stage ppo": PPO_UPDATE,
    "clock of the driver": TIME,
    "lengths of the rollouts and the model's shape": tuple(_M(*row) for row in WORK),
    "counted work and the driver's clock": tuple(_M(*row) for row in RATES),
    "supervision of the actors": FLEET,
    "held-out prompts, answered during training": _EVALUATION,
    "text of the held-out responses": _TEXT,
    "a suite of `rlhf-ray evaluate`": tuple(_M(*row) for row in SUITE),
    "an endpoint's log, `rlhf-ray drift`": tuple(_M(*row) for row in DRIFT),
    "detectors, on the held-out responses": _HACKING,
}
DEFINITIONS: tuple[MetricDefinition, ...] = tuple(
    replace(definition, source=source) for source, table in _SOURCES.items() for definition in table
)
REGISTRY: dict[str, MetricDefinition] = {definition.name: definition for definition in DEFINITIONS}
