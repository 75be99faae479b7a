"""Between a judge's store and people: hand items over for review, compare what both say, take people's word.

A review store holds the chosen items without what the judge said of them, so that nobody is led. Beside it lies the
plan: which item was chosen with which chance. Nothing is overwritten on either side: a judge that steps back corrects
its judgement to ``skipped``, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_ray.data.jsonl import read_jsonl, write_jsonl
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.feedback.agreement import Unit, pair_values
from rlhf_ray.feedback.records import Judgement, Kept
from rlhf_ray.feedback.store import Incoming, PreferenceStore, open_store
from rlhf_ray.judging.agreement import Compared
from rlhf_ray.judging.review import Chosen, Reviewable

PEOPLE_JUDGE = "people judge it"


# ----------------------------------------------------------------------------------------------------------- the judge
def judge_of(store: PreferenceStore, name: str = "") -> str:
    """The judge of that name; without one, the only judge of the store. Raises ConfigError where there is none."""
    judges = [each for each, kind in store.annotators().items() if kind == "judge"]
    if name and name in judges:
        return name
    if name or len(judges) != 1:
        rule = f"is none of the store's judges ({', '.join(judges) or 'it has none'})"
        raise ConfigError("--judge", name, rule, "name one of them, or let a judge judge first: `rlhf-ray judge run`")
    return judges[0]


def confidence_of(judgement: Judgement) -> float:
    """Of the least certain pair: max(p, 1 - p); 1 where nothing is said of doubts."""
    return min((max(label.probability, 1.0 - label.probability) for label in judgement.soft), default=1.0)


def reviewable(store: PreferenceStore, judge: str) -> list[Reviewable]:
    """The items that the judge ranks and nobody else has judged, in the order in which they came."""
    standing, others = _standing(store, judge)
    return [
        Reviewable(item_id, item.prompt.kind, confidence_of(standing[item_id].judgement))
        for item_id, item in store.items().items()
        if item_id in standing and item_id not in others
    ]


def step_back(store: PreferenceStore, judge: str, item_ids: Collection[str], reason: str) -> int:
    """Let the judge's judgements of these items count no longer; return how many did."""
    standing, _ = _standing(store, judge)
    corrections = [
        replace(
            kept.judgement, verdict="skipped", ranks=(), soft=(), ratings={}, reason=reason, corrects=kept.judgement_id
        )
        for item_id, kept in standing.items()
        if item_id in item_ids
    ]
    for correction in corrections:
        store.judge(correction)
    return len(corrections)


def _standing(store: PreferenceStore, judge: str) -> tuple[dict[str, Kept], set[str]]:
    """The judge's rankings that count, by item, and the items that others have judged."""
    kept = store.judgements()
    standing = {
        each.judgement.item_id: each
        for each in kept
        if each.judgement.annotator == judge and each.judgement.verdict == "ranked"
    }
    return standing, {each.judgement.item_id for each in kept if each.judgement.annotator != judge}


# -------------------------------------------------------------------------------------------------------------- review
def plan_path(review: str) -> Path:
    """Where the plan of a review store lies: beside it."""
    return Path(review).with_suffix(".plan.jsonl")


def hand_over(store: PreferenceStore, chosen: Sequence[Chosen], review: str, judge: str) -> None:
    """Make the review store and its plan. Raises ConfigError where the file is there already."""
    if "://" in review or Path(review).exists():
        raise ConfigError("--output", review, "must name a new file", "give the review another name")
    known = store.items()
    rows = [{"judge": judge, "item_id": c.item_id, "inclusion": c.inclusion, "stratum": c.stratum} for c in chosen]
    write_jsonl(plan_path(review), rows)
    with open_store(review, create=True) as opened:
        opened.add_items(known[each.item_id] for each in chosen)


def read_plan(review: str) -> dict[str, float]:
    """Inclusion probabilities by item. Raises DataError for a plan that cannot be read."""
    plan = {}
    for record in read_jsonl(plan_path(review)):
        item_id, inclusion = record.value.get("item_id"), record.value.get("inclusion")
        if not isinstance(item_id, str) or not isinstance(inclusion, float | int) or not 0 < inclusion <= 1:
            raise DataError(f'{record.where}: needs "item_id" and "inclusion", above 0 and not above 1')
        plan[item_id] = float(inclusion)
    return plan


# ----------------------------------------------------------------------------------------------------------- agreement
def compared(store: PreferenceStore, review: PreferenceStore, plan: Mapping[str, float], judge: str) -> list[Compared]:
    """Every pair of the plan's items that a person and the judge have judged.

    The judge's word is the last ranking that it gave, also where it has stepped back since.
    """
    said = opinions_of(store, judge)
    judges = {name for name, kind in review.annotators().items() if kind == "judge"}
    people = pair_values(each.judgement for each in review.judgements() if each.judgement.annotator not in judges)
    own = pair_values(said.values())
    return [
        Compared(unit[0], plan[unit[0]], own[unit][judge], value, _confidence(said[unit[0]], unit))
        for unit, given in people.items()
        if unit[0] in plan and unit in own
        for value in given.values()
    ]


def opinions_of(store: PreferenceStore, judge: str) -> dict[str, Judgement]:
    """The last ranking that the judge gave of each item, also where it has stepped back since."""
    return {
        each.judgement.item_id: each.judgement
        for each in store.history()
        if each.judgement.annotator == judge and each.judgement.verdict == "ranked"
    }


def _confidence(judgement: Judgement, unit: Unit) -> float:
    for label in judgement.soft:
        if {label.first, label.second} == set(unit[1:]):
            return max(label.probability, 1.0 - label.probability)
    return 1.0


def adopt(store: PreferenceStore, review: PreferenceStore, judge: str) -> tuple[int, int]:
    """Take people's judgements of a review into the store, where the judge steps back from what people have ranked.

    Return how many judgements are new and from how many items the judge stepped back.
    """
    history = review.history()
    places = {kept.judgement_id: place for place, kept in enumerate(history)}
    incoming = [
        Incoming(
            replace(kept.judgement, corrects=None),
            None if kept.judgement.corrects is None else places[kept.judgement.corrects],
            kept.at,
        )
        for kept in history
    ]
    added = store.add_all(review.items().values(), incoming, review.annotators())
    ranked = {kept.judgement.item_id for kept in review.judgements() if kept.judgement.verdict == "ranked"}
    return added, step_back(store, judge, ranked, PEOPLE_JUDGE)
