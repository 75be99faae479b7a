"""What the manager sees: how far the work is, how fast it goes, and how good it seems."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles

from rlhf_ray.config.labelling import AssignmentConfig
from rlhf_ray.feedback.agreement import kappas, krippendorff_alpha, oriented, pair_values
from rlhf_ray.feedback.records import Item, Judgement, Kept
from rlhf_ray.labelling.assignment import NOBODY, Lease, Question, Standing, wanted
from rlhf_ray.labelling.quality import Quality, Tally, places_of_winners, qualities

DAYS = 14


@dataclass(frozen=True)
class Pace:
    """Of one annotator: how much, and how fast. Seconds are NaN where nobody took the time."""

    annotator: str
    judged: int
    today: int
    last_hour: int
    skipped: int
    flagged: int
    all_bad: int
    median_s: float
    quartiles_s: tuple[float, float]
    per_hour: float  # items in an hour of looking at the page


@dataclass(frozen=True)
class Flag:
    """An item that somebody thinks should not be here."""

    item_id: str
    annotator: str
    reason: str
    prompt: str


@dataclass(frozen=True)
class Overview:
    """All of the manager's page."""

    items: int
    gold_items: int
    finished: int  # answered by as many annotators as it is wanted from
    in_hand: int
    paces: list[Pace]
    qualities: list[Quality]
    by_day: list[tuple[str, int]]  # the last days, the newest last
    alpha: float
    shared_pairs: int
    kappas: list[tuple[str, str, float, int]]
    places: dict[int, list[int]]
    flags: list[Flag]


def overview(
    items: Mapping[str, Item],
    kept: Sequence[Kept],
    *,
    questions: Sequence[Question],
    standing: Standing,
    leases: Sequence[Lease],
    people: Sequence[str],
    rules: AssignmentConfig,
    now: float,
) -> Overview:
    """Sum the judgements of people up that count. ``now`` is in seconds since 1970; days are those of UTC."""
    judgements = [each.judgement for each in kept]
    values = oriented(pair_values(judgements))
    counts = wanted(questions, rules)
    moment = datetime.fromtimestamp(now, UTC)
    return Overview(
        items=len(counts),
        gold_items=len(questions) - len(counts),
        finished=sum(len(standing.answered.get(each, NOBODY)) >= count for each, count in counts.items()),
        in_hand=sum(lease.until > now for lease in leases),
        paces=[pace(name, kept, moment) for name in people],
        qualities=qualities(items, judgements),
        by_day=by_day(kept, moment),
        alpha=krippendorff_alpha(values),
        shared_pairs=sum(len(given) > 1 for given in values.values()),
        kappas=[(a, b, kappa, count) for (a, b), (kappa, count) in kappas(values).items()],
        places=places_of_winners(judgements),
        flags=[flag_of(items[each.item_id], each) for each in judgements if each.verdict == "flagged"],
    )


def pace(name: str, kept: Sequence[Kept], now: datetime) -> Pace:
    """How much one annotator has done and how long it took."""
    own = [each for each in kept if each.judgement.annotator == name]
    verdicts = Counter(each.judgement.verdict for each in own)
    ages = [now - datetime.fromisoformat(each.at) for each in own]
    seconds = [each.judgement.seconds for each in own if each.judgement.seconds is not None]
    total = math.fsum(seconds)
    quarters = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [math.nan] * 3
    return Pace(
        annotator=name,
        judged=len(own) - verdicts["skipped"],
        today=sum(datetime.fromisoformat(each.at).date() == now.date() for each in own),
        last_hour=sum(age <= timedelta(hours=1) for age in ages),
        skipped=verdicts["skipped"],
        flagged=verdicts["flagged"],
        all_bad=verdicts["all_bad"],
        median_s=median(seconds) if seconds else math.nan,
        quartiles_s=(quarters[0], quarters[2]),
        per_hour=3600 * len(seconds) / total if total else math.nan,
    )


def by_day(kept: Sequence[Kept], now: datetime) -> list[tuple[str, int]]:
    """Judgements of each of the last days."""
    counts = Counter(datetime.fromisoformat(each.at).date() for each in kept)
    days = [now.date() - timedelta(days=age) for age in range(DAYS - 1, -1, -1)]
    return [(day.isoformat(), counts[day]) for day in days]


def flag_of(item: Item, judgement: Judgement) -> Flag:
    return Flag(judgement.item_id, judgement.annotator, judgement.reason, item.prompt.messages[-1].content)


def share_text(tally: Tally) -> str:
    """``67% (49 to 81) of 30``: a share with its 95% interval; ``none yet`` where there is nothing to count."""
    if not tally.count:
        return "none yet"
    share = tally.share
    return f"{share.value:.0%} ({100 * share.low:.0f} to {100 * share.high:.0f}) of {tally.count}"
