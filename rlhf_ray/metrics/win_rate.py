"""How often a judge prefers one model's responses to another's: both orders asked, ties by half, length held equal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from rlhf_ray.metrics.statistics import DEFAULT_RESAMPLES, Interval, mean_interval, proportion_interval

LENGTH_RATIOS = (1.1, 1.25, 1.5, 2.0)  # longer response over shorter: where a stratum ends and the next begins
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class JudgedPair:
    """The treated and the baseline model's response to one prompt, judged in both orders.

    ``forward`` and ``backward`` are the probability that the treated response is the better one when it was shown first
    and when it was shown second; None where that order's verdict could not be read. Lengths are in characters.
    """

    prompt_id: str
    forward: float | None
    backward: float | None
    treated_length: int
    baseline_length: int

    @property
    def preference(self) -> float | None:
        """1 a win, 0 a loss; 0.5 a tie, and where the two orders name different winners. None where one is unread."""
        if self.forward is None or self.backward is None:
            return None
        if not self.is_consistent or self.forward == 0.5:
            return 0.5
        return float(self.forward > 0.5)

    @property
    def is_consistent(self) -> bool:
        """Whether both orders name one winner, or both none."""
        if self.forward is None or self.backward is None:
            return False
        return (self.forward > 0.5) == (self.backward > 0.5) and (self.forward < 0.5) == (self.backward < 0.5)


@dataclass(frozen=True)
class WinRate:
    """Shares in [0, 1]; a prompt's responses are averaged first, and prompts are what the bootstrap resamples.

    ``length_controlled`` is what is left of ``win_rate`` where longer and shorter responses weigh the same;
    ``length_covered`` is the share of pairs that it could be computed on. ``consistent`` is the share of pairs whose
    two orders agree. wins, ties and losses count pairs, ``unread`` those without a verdict in both orders.
    """

    win_rate: Interval
    length_controlled: Interval
    length_covered: float
    consistent: Interval
    wins: int
    ties: int
    losses: int
    unread: int


def win_rate(pairs: Sequence[JudgedPair], *, seed: int = 0, num_resamples: int = DEFAULT_RESAMPLES) -> WinRate:
    """Return how often the treated model wins. Every share is NaN where no pair was read."""
    read = [(pair, preference) for pair in pairs if (preference := pair.preference) is not None]
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for pair, preference in read:
        by_prompt[pair.prompt_id].append(preference)
    means = [fmean(by_prompt[prompt_id]) for prompt_id in sorted(by_prompt)]
    controlled, covered = length_controlled([pair for pair, _ in read], seed=seed, num_resamples=num_resamples)
    agreeing = sum(pair.is_consistent for pair, _ in read)
    outcomes = [preference for _, preference in read]
    return WinRate(
        win_rate=mean_interval(means, seed=seed, num_resamples=num_resamples),
        length_controlled=controlled,
        length_covered=covered,
        consistent=proportion_interval(agreeing, len(read)),
        wins=outcomes.count(1.0),
        ties=outcomes.count(0.5),
        losses=outcomes.count(0.0),
        unread=len(pairs) - len(read),
    )


def length_controlled(
    pairs: Sequence[JudgedPair], *, seed: int = 0, num_resamples: int = DEFAULT_RESAMPLES
) -> tuple[Interval, float]:
    """Return the win rate with length held equal by post-stratification, and the share of pairs that it covers.

    Pairs are sorted into strata by the ratio of the longer response to the shorter (``LENGTH_RATIOS``). In each
    stratum the pairs in which the treated response is the longer and those in which it is the shorter count for a half,
    whatever their numbers; strata weigh by theirs. A preference for length alone then gives 0.5. A stratum that has
    pairs of one side only says nothing and is left out: where all are such, the result is NaN, and no formula would
    tell quality from length. AlpacaEval 2 extrapolates there with a regression instead (Dubois et al. 2024,
    arXiv:2404.04475). Pairs without a preference are left out.
    """
    read = [(pair, preference) for pair in pairs if (preference := pair.preference) is not None]
    if not read:
        return Interval(math.nan, math.nan, math.nan, 0), math.nan
    preferences = np.array([preference for _, preference in read])
    cells = np.array([_cell(pair) for pair, _ in read], dtype=np.int64)
    prompts = sorted({pair.prompt_id for pair, _ in read})
    place = {prompt_id: index for index, prompt_id in enumerate(prompts)}
    of_prompt = np.array([place[pair.prompt_id] for pair, _ in read], dtype=np.int64)
    value, covered = _balanced(preferences, cells, np.ones(len(read)))
    random = np.random.default_rng(seed)
    share = np.full(len(prompts), 1.0 / len(prompts))
    drawn = [
        _balanced(preferences, cells, random.multinomial(len(prompts), share)[of_prompt].astype(np.float64))[0]
        for _ in range(num_resamples)
    ]
    resampled = np.array([each for each in drawn if not math.isnan(each)])
    if len(prompts) < 2 or math.isnan(value) or not len(resampled):
        return Interval(value, math.nan, math.nan, len(prompts)), covered
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(value, float(low), float(high), len(prompts)), covered


def _cell(pair: JudgedPair) -> int:
    """Stratum and side as one number: 2 * stratum, + 1 where the treated response is the longer.

    Responses of nearly one length have no side: all of them are in cell 0.
    """
    treated, baseline = pair.treated_length + 1, pair.baseline_length + 1  # an empty response has a length too
    ratio = max(treated, baseline) / min(treated, baseline)
    stratum = sum(ratio > edge for edge in LENGTH_RATIOS)
    return 2 * stratum + int(stratum > 0 and treated > baseline)


def _balanced(preferences: Doubles, cells: Integers, weights: Doubles) -> tuple[float, float]:
    """The weighted mean over strata of the mean of both sides, and the share of the weight that it covers."""
    size = 2 * (len(LENGTH_RATIOS) + 1)
    counts = np.bincount(cells, weights=weights, minlength=size)
    sums = np.bincount(cells, weights=weights * preferences, minlength=size)
    means = sums / np.where(counts > 0, counts, 1.0)
    total = won = 0.0
    for stratum in range(size // 2):
        shorter, longer = 2 * stratum, 2 * stratum + 1
        if stratum == 0:
            total, won = total + counts[0], won + sums[0]
        elif counts[shorter] > 0 and counts[longer] > 0:
            own = counts[shorter] + counts[longer]
            total, won = total + own, won + own * (means[shorter] + means[longer]) / 2
    everything = float(counts.sum())
    covered = float(total) / everything if everything else math.nan
    return (float(won / total) if total > 0 else math.nan), covered
