"""How rollouts become minibatches, ranks' shares and micro-batches: arithmetic on lengths, in tokens.

A minibatch is drawn globally, so its rows do not depend on the number of ranks; only then is it shared out.
Micro-batches are cut from rows sorted by length, so that little is padding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlhf_ray.data.partition import Rows, balanced_partition
from rlhf_ray.errors import ConfigError

Counts = npt.NDArray[np.int64]

# What starting a micro-batch costs (kernel launches, gathered weights), in tokens: weighs their number against padding.
MICRO_BATCH_TOKENS = 64


@dataclass(frozen=True)
class RankPlan:
    """One rank's share of a minibatch. An empty micro-batch is a forward pass that only keeps the ranks together."""

    micro_batches: tuple[Rows, ...]


@dataclass(frozen=True)
class MinibatchPlan:
    """One optimizer step. Every rank has the same number of micro-batches: under ZeRO-3 a missing forward hangs all."""

    ranks: tuple[RankPlan, ...]

    @property
    def rows(self) -> Rows:
        """All rows of the minibatch in ascending order, the same for any number of ranks."""
        return tuple(sorted(row for rank in self.ranks for rows in rank.micro_batches for row in rows))


@dataclass(frozen=True)
class UpdatePlan:
    """One pass over a step's rollouts: ``plan.minibatches[m].ranks[r].micro_batches[k]`` are row indices."""

    minibatches: tuple[MinibatchPlan, ...]


def plan_minibatches(
    *, lengths: Sequence[int], num_minibatches: int, num_ranks: int, max_tokens: int, seed: int
) -> UpdatePlan:
    """Plan one epoch over rollouts of ``lengths`` tokens; every row stands in exactly one micro-batch.

    One permutation from ``seed`` draws the minibatches, whose sizes differ by at most one. Each is balanced over the
    ranks by tokens and cut into micro-batches of at most ``max_tokens`` tokens, padding included.
    """
    if not 1 <= num_minibatches <= len(lengths):
        raise ConfigError(
            "num_minibatches",
            num_minibatches,
            f"must lie between 1 and the number of rollouts ({len(lengths)})",
            "lower it or collect more rollouts in a step",
        )
    if num_ranks < 1:
        raise ConfigError("num_ranks", num_ranks, "must be at least 1", "give the trainer a process")
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    minibatches = [sorted(order[index::num_minibatches]) for index in range(num_minibatches)]
    shares = [share for rows in minibatches for share in _shares(lengths, rows, num_ranks)]
    packed = pack_shares([[lengths[row] for row in share] for share in shares], max_tokens)
    named = [[_picked(share, rows) for rows in found] for share, found in zip(shares, packed, strict=True)]
    return UpdatePlan(
        tuple(_level(lengths, named[first : first + num_ranks]) for first in range(0, len(named), num_ranks))
    )


def _shares(lengths: Sequence[int], rows: Sequence[int], num_ranks: int) -> list[Rows]:
    """Each rank's rows of a minibatch, even by tokens."""
    parts = balanced_partition([lengths[row] for row in rows], num_ranks, equal_counts=False)
    return [_picked(rows, part) for part in parts]


def _picked(rows: Sequence[int], places: Rows) -> Rows:
    return tuple(map(rows.__getitem__, places))


def _level(lengths: Sequence[int], packed: Sequence[list[Rows]]) -> MinibatchPlan:
    """The ranks of a minibatch, with as many micro-batches each."""
    count = max(len(micro_batches) for micro_batches in packed)
    return MinibatchPlan(tuple(RankPlan(_extended(lengths, micro_batches, count)) for micro_batches in packed))


def _extended(lengths: Sequence[int], micro_batches: list[Rows], count: int) -> tuple[Rows, ...]:
    """Bring a rank to ``count`` micro-batches: halve the largest while it can be halved, then add empty ones."""
    micro_batches = list(micro_batches)
    while len(micro_batches) < count:
        sizes = [_padded_tokens(lengths, rows) if len(rows) > 1 else 0 for rows in micro_batches]
        if not any(sizes):
            break
        largest = sizes.index(max(sizes))
        rows = micro_batches[largest]
        middle = len(rows) // 2
        micro_batches[largest : largest + 1] = [rows[:middle], rows[middle:]]
    return (*micro_batches, *[()] * (count - len(micro_batches)))


def pack_micro_batches(lengths: Sequence[int], max_tokens: int) -> tuple[Rows, ...]:
    """Cut all indices into micro-batches of at most ``max_tokens`` padded tokens, longest first.

    A micro-batch holds its longest length times its number of rows. Of all cuts of the rows sorted by length, the one
    with the least padded tokens is taken, where every micro-batch costs ``MICRO_BATCH_TOKENS`` more. A row longer than
    ``max_tokens`` gets a micro-batch of its own.
    """
    return pack_shares([lengths], max_tokens)[0]


def pack_shares(shares: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[Rows, ...]]:
    """:func:`pack_micro_batches` of the lengths of many shares, all at once."""
    if max_tokens < 1:
        raise ConfigError("max_tokens", max_tokens, "must be at least 1 token", "take the longest rollout or more")
    if not any(map(len, shares)):
        return [()] * len(shares)
    orders = [sorted(range(len(share)), key=share.__getitem__, reverse=True) for share in shares]  # ties as they stand
    size = max(map(len, shares))
    longest = np.empty((len(shares), size), dtype=np.int64)  # aligned at the end, where the search begins
    for line, share, order in zip(longest, shares, orders, strict=True):
        line[: size - len(share)] = max(share, default=max_tokens)  # places before the share: nothing is read there
        line[size - len(share) :] = [share[row] for row in order]
    ends = _cheapest_ends(longest, max_tokens).tolist()
    return [_cut(order, own, size - len(order)) for order, own in zip(orders, ends, strict=True)]


def _cheapest_ends(longest: Counts, max_tokens: int) -> Counts:
    """For each share (a line, lengths descending) and each place: where a micro-batch that begins there best ends.

    ``costs[:, i]`` is what the rows from place i on cost at best. A start that comes earlier never ends later (the cost
    of a micro-batch satisfies the quadrangle inequality), so that no end beyond the one after it is looked at.
    """
    count, size = longest.shape
    widest = np.maximum(max_tokens // np.maximum(longest, 1), 1)
    costs, ends = np.zeros((count, size + 1), dtype=np.int64), np.full((count, size + 1), size, dtype=np.int64)
    rows, numbers = np.arange(count), np.arange(1, size + 1)
    for start in reversed(range(size)):
        last = min(int(widest[:, start].max()) + start, int(ends[:, start + 1].max()))
        number = numbers[: last - start]  # of rows in the micro-batch
        found = costs[:, start + 1 : last + 1] + longest[:, start, None] * number
        found[number > widest[:, start, None]] = np.iinfo(np.int64).max
        best = found.argmin(axis=1)  # of equals the first
        costs[:, start] = found[rows, best] + MICRO_BATCH_TOKENS
        ends[:, start] = start + 1 + best
    return ends


def _cut(order: list[int], ends: list[int], first: int) -> tuple[Rows, ...]:
    """The micro-batches of the rows in ``order``, whose first stands at place ``first`` of ``ends``."""
    micro_batches, start = [], first
    while start < first + len(order):
        micro_batches.append(tuple(order[start - first : ends[start] - first]))
        start = ends[start]
    return tuple(micro_batches)


def padding_fraction(lengths: Sequence[int], micro_batches: Sequence[Rows]) -> float:
    """Return the share of padded tokens that are padding; 0 where there are no tokens at all."""
    padded = sum(_padded_tokens(lengths, rows) for rows in micro_batches)
    tokens = sum(lengths[row] for rows in micro_batches for row in rows)
    return 1 - tokens / padded if padded else 0.0


def _padded_tokens(lengths: Sequence[int], rows: Rows) -> int:
    return max((lengths[row] for row in rows), default=0) * len(rows)
