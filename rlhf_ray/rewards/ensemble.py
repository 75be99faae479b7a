"""Several reward models that were trained apart on the same rankings: where they disagree, none of them knows.

The score of an ensemble is the mean of its members' less ``penalty`` deviations: the uncertainty-weighted optimisation
of Coste et al. 2024 with the deviation in place of the variance, so that the penalty has the unit of the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Graded, Score

SPREAD = "std"  # the part of a score that says how far the members are apart
MEMBER = "member_"


def combine_members(answers: Sequence[Graded], *, penalty: float) -> Graded:
    """What an ensemble says of one response, from what its members say; one member alone is taken as it is.

    The parts are the means of the members' parts, each member's own score and their deviation (of the sample, n - 1).
    """
    if len(answers) == 1:
        return answers[0]
    scores = [float(answer.score) for answer in answers if answer.score is not None]
    if len(scores) != len(answers):
        raise RlhfError("a member of an ensemble gave no score")
    spread = stdev(scores)
    parts = {axis: fmean(answer.parts[axis] for answer in answers) for axis in answers[0].parts}
    parts |= {f"{MEMBER}{number}": score for number, score in enumerate(scores, start=1)}
    return Graded(fmean(scores) - penalty * spread, parts={**parts, SPREAD: spread})


def member_scores(score: Score, source: str) -> list[float]:
    """The score of each member of ``source``; of a source without members its only one."""
    members = [part for name, part in score.parts.items() if name.startswith(f"{source}.{MEMBER}")]
    return members or [score.parts[source]]
