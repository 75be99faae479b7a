"""What a store says of itself, as lines of text: how much there is, by whom, and whether they agree."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

from rlhf_ray.feedback.agreement import kappas, krippendorff_alpha, oriented, pair_values
from rlhf_ray.feedback.records import VERDICTS
from rlhf_ray.feedback.store import PreferenceStore


def report(store: PreferenceStore) -> list[str]:
    """Return the lines. Agreement is over pairs of candidates that two or more annotators have judged."""
    kept, kinds = [each.judgement for each in store.judgements()], store.annotators()
    verdicts = Counter(judgement.verdict for judgement in kept)
    lines = [f"{len(store.items())} items, {len(kept)} judgements that count, {len(store.history())} ever made"]
    lines.append("verdicts: " + ", ".join(f"{verdicts[verdict]} {verdict.replace('_', ' ')}" for verdict in VERDICTS))
    for name in sorted(kinds):
        own = [judgement for judgement in kept if judgement.annotator == name]
        times = [judgement.seconds for judgement in own if judgement.seconds is not None]
        pace = f", median {median(times):.0f} s an item" if times else ""
        lines.append(f"{name} ({kinds[name]}): {len(own)} judgements{pace}")
    values = oriented(pair_values(kept))
    alpha, shared = krippendorff_alpha(values), sum(len(given) > 1 for given in values.values())
    if math.isnan(alpha):
        return [*lines, "agreement: no pair was judged by two annotators"]
    lines.append(f"agreement: Krippendorff's alpha {alpha:.3f} over {shared} pairs that two or more have judged")
    lines += [
        f"  {a} and {b}: Cohen's kappa {kappa:.3f} over {n} pairs" for (a, b), (kappa, n) in kappas(values).items()
    ]
    return lines
