"""Questions with answers: whether a response gives a right one, by rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from rlhf_ray.records import TextPrompt
from rlhf_ray.rewards.answers import normalised
from rlhf_ray.rewards.verifiable import choice_answer, exact_answer, number_answer
from rlhf_ray.suites.formats import ANSWERS

Rule = Callable[[str, str], bool]


def is_right(rule: str, prompt: TextPrompt, response: str) -> bool:
    """Whether ``response`` gives one of the prompt's answers by ``exact``, ``number``, ``choice`` or ``contains``.

    The first three are the rewards exact_answer, number_answer and choice_answer. ``contains`` looks for the answer
    anywhere, as whole words, without case: the usual rule for short factual answers in free text. It takes "not Paris"
    for Paris.
    """
    answers = (prompt.facts.get(ANSWERS) or prompt.facts.get("answer", "")).split("\n")
    return any(RULES[rule](response, answer) for answer in answers)


def _rewarded(function: Callable[..., Sequence[object]]) -> Rule:
    return lambda response, answer: function(prompts=[""], responses=[response], facts=[{"answer": answer}])[0] == 1.0


def _contains(response: str, answer: str) -> bool:
    wanted = re.escape(normalised(answer))
    return bool(wanted) and re.search(rf"(?<!\w){wanted}(?!\w)", " ".join(normalised(response).split())) is not None


RULES: Mapping[str, Rule] = {
    "exact": _rewarded(exact_answer),
    "number": _rewarded(number_answer),
    "choice": _rewarded(choice_answer),
    "contains": _contains,
}
