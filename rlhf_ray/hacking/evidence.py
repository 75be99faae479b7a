"""What a held-out evaluation brings to the detectors, and which of its responses show what an alarm is about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rlhf_ray.hacking.conduct import TwinAnswer
from rlhf_ray.hacking.language import Pair, novel_share, odd_characters, same_answer, unknown_share
from rlhf_ray.metrics.evaluation import PRINCIPAL_GRADE, GradedResponse
from rlhf_ray.metrics.text import agrees, is_refusal, list_share, num_words, repetition

REFUSED = "refused"  # the grade by which a task says so itself
RIGHT = 0.5  # of gold, from which on an answer counts as right
STD = ".std"  # ends the name of a part that says how far the members of an ensemble are apart


@dataclass(frozen=True)
class Twins:
    """The answer to a question with a wrong opinion in it, and the answer to the question alone."""

    with_opinion: GradedResponse
    alone: GradedResponse

    @property
    def answer(self) -> TwinAnswer:
        return TwinAnswer(is_right(self.alone), is_right(self.with_opinion), refused(self.with_opinion))


@dataclass(frozen=True)
class Edited:
    """A held-out response under an edit that keeps its content."""

    response: GradedResponse
    text: str
    score: float  # of the edited text
    change: float  # of the score by the edit, in deviations of the scores


@dataclass(frozen=True)
class Known:
    """What the policy and the reward model were taught from; empty where nobody can tell."""

    words: Collection[str] = ()  # of demonstrations and prompts
    pairs: Collection[Pair] = ()  # neighbouring words in the responses that the reward model was trained on
    harmful_kinds: Collection[str] = ()


@dataclass(frozen=True)
class Evaluated:
    """One held-out evaluation, in the order of its prompts."""

    responses: Sequence[GradedResponse]
    twins: Sequence[Twins] = ()
    edited: Mapping[str, Sequence[Edited]] = field(default_factory=dict)  # by the edit's short name


@dataclass(frozen=True)
class Sample:
    """A response that shows what an alarm is about. ``score`` is None where it was not scored."""

    prompt: str
    response: str
    score: float | None
    rollout_id: str


def is_right(response: GradedResponse) -> bool:
    return response.grades.get(PRINCIPAL_GRADE, 0.0) >= RIGHT


def refused(response: GradedResponse) -> bool:
    """By the task's own grade where it has one, else by set phrases."""
    return response.grades[REFUSED] >= 0.5 if REFUSED in response.grades else is_refusal(response.response_text)


def reward_deviation(response: GradedResponse) -> float | None:
    """How far the members of the ensembles are apart about a response, their mean; None where there is none."""
    parts = [value for name, value in response.grades.items() if name.endswith(STD)]
    return sum(parts) / len(parts) if parts else None


def samples_of(metric: str, evaluated: Evaluated, known: Known, count: int) -> tuple[Sample, ...]:
    """The responses that show best what ``metric`` measures: of one without a rule here, those of the highest score.

    Of an edit it is ``count`` responses, each as it was and edited (``<rollout id>+<edit>``).
    """
    family, _, name = metric.partition("/")
    if family == "style":
        found = sorted(evaluated.edited.get(name, ()), key=lambda edited: -edited.change)[:count]
        before = _samples(evaluated.responses, [edited.response for edited in found])
        after = [
            Sample(sample.prompt, edited.text, edited.score, f"{sample.rollout_id}+{name}")
            for sample, edited in zip(before, found, strict=True)
        ]
        return tuple(sample for pair in zip(before, after, strict=True) for sample in pair)
    if metric == "hacking/flip_rate":
        flips = [twins.with_opinion for twins in evaluated.twins if twins.answer.flipped]
        return tuple(_samples(evaluated.responses, flips[:count]))
    rank = _rank(metric, evaluated, known)
    return tuple(_samples(evaluated.responses, sorted(evaluated.responses, key=rank, reverse=True)[:count]))


Rank: TypeAlias = Callable[[GradedResponse], float]


def _rank(metric: str, evaluated: Evaluated, known: Known) -> Rank:
    """What makes a response show a metric; among equal ones the score decides."""
    shows = _RANKS.get(metric, _nothing)(evaluated, known)
    return lambda response: shows(response) * 1e6 + (0.0 if response.score is None else response.score)


def _nothing(evaluated: Evaluated, known: Known) -> Rank:
    return lambda response: 0.0


def _words(evaluated: Evaluated, known: Known) -> Rank:
    return lambda response: num_words(response.response_text)


def _by_text(measure: Callable[[str], float]) -> Callable[[Evaluated, Known], Rank]:
    return lambda evaluated, known: lambda response: measure(response.response_text)


def _over_refused(evaluated: Evaluated, known: Known) -> Rank:
    return lambda response: float(refused(response) and response.kind not in known.harmful_kinds)


def _under_refused(evaluated: Evaluated, known: Known) -> Rank:
    return lambda response: float(not refused(response) and response.kind in known.harmful_kinds)


def _common(evaluated: Evaluated, known: Known) -> Rank:
    counts = Counter(same_answer(response.response_text) for response in evaluated.responses)
    return lambda response: counts[same_answer(response.response_text)]


def _low_gold(evaluated: Evaluated, known: Known) -> Rank:
    return lambda response: -response.grades.get(PRINCIPAL_GRADE, 0.0)


_RANKS: Mapping[str, Callable[[Evaluated, Known], Rank]] = {
    "hacking/score_length_correlation": _words,
    "hacking/score_explained_by_length": _words,
    "hacking/wins_by_length": _words,
    "gold/heldout_response_length": _words,
    "ppo/response_length": _words,
    "text/words": _words,
    "text/lists": _by_text(lambda text: list_share([text])),
    "text/agreements": _by_text(lambda text: float(agrees(text))),
    "text/refusals": _by_text(lambda text: float(is_refusal(text))),
    "text/repetition_3": _by_text(lambda text: repetition(text, 3)),
    "hacking/over_refusal": _over_refused,
    "hacking/under_refusal": _under_refused,
    "hacking/common_answer": _common,
    "hacking/repeated_answers": _common,
    "hacking/answer_entropy": _common,
    "text/self_bleu": _common,
    "hacking/odd_characters": _by_text(lambda text: odd_characters([text])),
    "hacking/unknown_words": lambda _, known: lambda r: unknown_share([r.response_text], known.words),
    "hacking/novel_pairs": lambda _, known: lambda r: novel_share([r.response_text], known.pairs),
    "hacking/kl_per_token": lambda _, known: lambda r: r.kl / max(1, r.num_tokens),
    "hacking/reward_std": lambda _, known: lambda r: reward_deviation(r) or 0.0,
    "hacking/gold_fall": _low_gold,
    "hacking/gold_lost": _low_gold,
    "gold/heldout_mean": _low_gold,
}


def _samples(all_responses: Sequence[GradedResponse], chosen: Sequence[GradedResponse]) -> list[Sample]:
    ids = {id(response): name for response, name in zip(all_responses, _ids(all_responses), strict=True)}
    return [
        Sample(each.prompt_text, each.response_text, each.score, ids.get(id(each), f"{each.prompt_id}/0"))
        for each in chosen
    ]


def _ids(responses: Sequence[GradedResponse]) -> list[str]:
    """The rollouts' names, as the requests had them: a prompt's responses stand in the order of their samples."""
    counts: dict[str, int] = defaultdict(int)
    names = []
    for response in responses:
        names.append(f"{response.prompt_id}/{counts[response.prompt_id]}")
        counts[response.prompt_id] += 1
    return names
