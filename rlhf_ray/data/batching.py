"""How rollouts become minibatches, ranks' shares and micro-batches: arithmetic on lengths, in tokens.

A minibatch is drawn globally, so its rows do not depend on the number of ranks; only then is it shared out.
Micro-batches are cut from rows sorted by length, so that little is padding.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlhf_ray.errors import ConfigError

Rows: TypeAlias = tuple[int, ...]

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
    minibatches = (order[index::num_minibatches] for index in range(num_minibatches))
    return UpdatePlan(tuple(_plan_minibatch(lengths, rows, num_ranks, max_tokens) for rows in minibatches))


def _plan_minibatch(lengths: Sequence[int], rows: list[int], num_ranks: int, max_tokens: int) -> MinibatchPlan:
    rows = sorted(rows)
    shares = balanced_partition([lengths[row] for row in rows], num_ranks, equal_counts=False)
    packed = []
    for share in shares:
        share_rows = [rows[index] for index in share]
        micro_batches = pack_micro_batches([lengths[row] for row in share_rows], max_tokens)
        packed.append([tuple(share_rows[index] for index in micro_batch) for micro_batch in micro_batches])
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
    if max_tokens < 1:
        raise ConfigError("max_tokens", max_tokens, "must be at least 1 token", "take the longest rollout or more")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    # best[i] = (cost, end of the first micro-batch) for the rows from place i on.
    best: list[tuple[int, int]] = [(0, 0)] * (len(order) + 1)
    for start in reversed(range(len(order))):
        longest = lengths[order[start]]
        widest = max(1, max_tokens // max(longest, 1))
        ends = range(start + 1, min(start + widest, len(order)) + 1)
        best[start] = min((best[end][0] + longest * (end - start) + MICRO_BATCH_TOKENS, end) for end in ends)

    micro_batches, start = [], 0
    while start < len(order):
        end = best[start][1]
        micro_batches.append(tuple(order[start:end]))
        start = end
    return tuple(micro_batches)


def padding_fraction(lengths: Sequence[int], micro_batches: Sequence[Rows]) -> float:
    """Return the share of padded tokens that are padding; 0 where there are no tokens at all."""
    padded = sum(_padded_tokens(lengths, rows) for rows in micro_batches)
    tokens = sum(lengths[row] for rows in micro_batches for row in rows)
    return 1 - tokens / padded if padded else 0.0


def _padded_tokens(lengths: Sequence[int], rows: Rows) -> int:
    return max((lengths[row] for row in rows), default=0) * len(rows)


# ------------------------------------------------------------------------------------------------------ balanced shares
# A share is its sum of lengths and its indices; a partition is one share for each part, largest sum first.
Share: TypeAlias = tuple[int, Rows]


def balanced_partition(lengths: Sequence[int], num_parts: int, equal_counts: bool) -> tuple[Rows, ...]:
    """Split all indices into ``num_parts`` parts with sums of lengths as even as the largest differencing method finds.

    Karmarkar and Karp 1982: of the partitions left, join the two with the widest spread, largest share to smallest.
    The sums differ by at most the longest length. With ``equal_counts`` the parts' sizes differ by at most one; without
    it a part may be empty. Deterministic; indices ascend within a part.
    """
    if num_parts < 1:
        raise ConfigError("num_parts", num_parts, "must be at least 1", "ask for one part or more")
    seeds = _equal_seeds(lengths, num_parts) if equal_counts else _single_seeds(lengths, num_parts)
    heap = [(-_spread(partition), place, partition) for place, partition in enumerate(seeds)]
    heapq.heapify(heap)
    for place in range(len(heap), 2 * len(heap) - 1):
        _, _, first = heapq.heappop(heap)
        _, _, second = heapq.heappop(heap)
        joined = _joined(first, second)
        heapq.heappush(heap, (-_spread(joined), place, joined))
    if not heap:
        return ((),) * num_parts
    return tuple(tuple(sorted(indices)) for _, indices in heap[0][2])


def _single_seeds(lengths: Sequence[int], num_parts: int) -> list[list[Share]]:
    """Give every index a partition of its own."""
    empty: list[Share] = [(0, ())] * (num_parts - 1)
    return [[(length, (index,)), *empty] for index, length in enumerate(lengths)]


def _equal_seeds(lengths: Sequence[int], num_parts: int) -> list[list[Share]]:
    """Give every ``num_parts`` neighbours in length a partition with one index in each part."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    seeds = []
    for start in range(0, len(order), num_parts):
        shares: list[Share] = [(lengths[index], (index,)) for index in order[start : start + num_parts]]
        seeds.append(shares + [(0, ())] * (num_parts - len(shares)))
    return seeds


def _joined(first: list[Share], second: list[Share]) -> list[Share]:
    pairs = zip(first, reversed(second), strict=True)
    return sorted(((a[0] + b[0], a[1] + b[1]) for a, b in pairs), key=lambda share: -share[0])


def _spread(partition: list[Share]) -> int:
    return partition[0][0] - partition[-1][0]
