"""Plans of updates made slowly: every join of shares and every end of a micro-batch by itself, as the papers say it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from rlhf_ray.data.batching import MICRO_BATCH_TOKENS

Rows = tuple[int, ...]
Share = tuple[int, Rows]  # a sum of lengths and its indices


def plain_partition(lengths: Sequence[int], num_parts: int, equal_counts: bool) -> tuple[Rows, ...]:
    """Karmarkar and Karp's largest differencing method with one heap and whole partitions in it."""
    seeds = _equal_seeds(lengths, num_parts) if equal_counts else _single_seeds(lengths, num_parts)
    heap = [(-_spread(partition), place, partition) for place, partition in enumerate(seeds)]
    heapq.heapify(heap)
    for place in range(len(heap), 2 * len(heap) - 1):
        _, _, first = heapq.heappop(heap)
        _, _, second = heapq.heappop(heap)
        pairs = zip(first, reversed(second), strict=True)
        joined = sorted(((a[0] + b[0], a[1] + b[1]) for a, b in pairs), key=lambda share: -share[0])
        heapq.heappush(heap, (-_spread(joined), place, joined))
    if not heap:
        return ((),) * num_parts
    return tuple(tuple(sorted(indices)) for _, indices in heap[0][2])


def _single_seeds(lengths: Sequence[int], num_parts: int) -> list[list[Share]]:
    empty: list[Share] = [(0, ())] * (num_parts - 1)
    return [[(length, (index,)), *empty] for index, length in enumerate(lengths)]


def _equal_seeds(lengths: Sequence[int], num_parts: int) -> list[list[Share]]:
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    seeds = []
    for start in range(0, len(order), num_parts):
        shares: list[Share] = [(lengths[index], (index,)) for index in order[start : start + num_parts]]
        seeds.append(shares + [(0, ())] * (num_parts - len(shares)))
    return seeds


def _spread(partition: list[Share]) -> int:
    return partition[0][0] - partition[-1][0]


def least_cut(lengths: Sequence[int], max_tokens: int) -> tuple[Rows, ...]:
    """Of the cuts of the rows sorted by length the cheapest, found from the end; of equals the earliest end."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    best: list[tuple[int, int]] = [(0, 0)] * (len(order) + 1)  # cost and end of the first micro-batch, by place
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
