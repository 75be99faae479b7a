"""Even shares of work: the largest differencing method (Karmarkar and Karp 1982) over lengths in tokens.

Of very many rows the longest go to the smallest share first, one by one (Graham 1969), which takes less time; the
shortest ones, joined by differences, make up for what it leaves uneven.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TypeAlias

from rlhf_ray.errors import ConfigError

Rows: TypeAlias = tuple[int, ...]
Share: TypeAlias = tuple[int, Rows]  # a sum of lengths and its indices
Shares: TypeAlias = list[Share]  # largest sum first; empty ones are left out where no length is 0
Partition: TypeAlias = tuple[int, int, Shares]  # minus the spread, the place in time: together they say who is next

DIFFERENCED = 32  # rows a share that the largest differencing method takes; the longer ones are placed greedily
EMPTY: Share = (0, ())
SUM = itemgetter(0)


def balanced_partition(lengths: Sequence[int], num_parts: int, equal_counts: bool) -> tuple[Rows, ...]:
    """Split all indices into ``num_parts`` parts with sums of lengths as even as the largest differencing method finds.

    Of the partitions left, join the two with the widest spread, largest share to smallest. The sums differ by at most
    the longest length. With ``equal_counts`` the parts' sizes differ by at most one; without it a part may be empty.
    Deterministic; indices ascend within a part.
    """
    if num_parts < 1:
        raise ConfigError("num_parts", num_parts, "must be at least 1", "ask for one part or more")
    if num_parts == 1 or not lengths:
        return (tuple(range(len(lengths))), *[()] * (num_parts - 1))
    seeds = _equal_seeds(lengths, num_parts) if equal_counts else _single_seeds(lengths, num_parts)
    shares = _joined_all(deque(sorted(seeds)), num_parts)
    return tuple(tuple(sorted(indices)) for _, indices in _padded(shares, num_parts))


def _single_seeds(lengths: Sequence[int], num_parts: int) -> Iterator[Partition]:
    """Give every index a partition of its own, but for the longest of very many, which stand in one."""
    empty = [EMPTY] * (num_parts - 1) if min(lengths) <= 0 else []
    single: Sequence[int] = range(len(lengths))
    if len(lengths) > 2 * DIFFERENCED * num_parts:
        order = sorted(single, key=lambda index: (-lengths[index], index))
        single = sorted(order[-DIFFERENCED * num_parts :])
        shares = _greedy(lengths, order[: -DIFFERENCED * num_parts], num_parts)
        yield shares[-1][0] - shares[0][0], -1, shares
    for index in single:
        yield -lengths[index], index, [(lengths[index], (index,)), *empty]


def _greedy(lengths: Sequence[int], order: Sequence[int], num_parts: int) -> Shares:
    """Each index in turn to the share with the smallest sum, the first of equals."""
    heap = [(0, part) for part in range(num_parts)]
    rows: list[list[int]] = [[] for _ in range(num_parts)]
    for index in order:
        total, part = heap[0]
        rows[part].append(index)
        heapq.heapreplace(heap, (total + lengths[index], part))
    return [(total, tuple(rows[part])) for total, part in sorted(heap, key=lambda item: (-item[0], item[1]))]


def _equal_seeds(lengths: Sequence[int], num_parts: int) -> Iterator[Partition]:
    """Give every ``num_parts`` neighbours in length a partition with one index in each part."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for place, start in enumerate(range(0, len(order), num_parts)):
        shares = _padded([(lengths[row], (row,)) for row in order[start : start + num_parts]], num_parts)
        yield shares[-1][0] - shares[0][0], place, shares


def _joined_all(waiting: deque[Partition], num_parts: int) -> Shares:
    """Join until one is left. Seeds wait sorted, what is made of them on a heap: the next is the first of either."""
    made: list[Partition] = []
    for place in range(len(waiting), 2 * len(waiting) - 1):
        shares = _joined(_widest(waiting, made), _widest(waiting, made), num_parts)
        smallest = shares[-1][0] if len(shares) == num_parts else 0
        heapq.heappush(made, (smallest - shares[0][0], place, shares))
    return _widest(waiting, made)


def _widest(waiting: deque[Partition], made: list[Partition]) -> Shares:
    if made and (not waiting or made[0] < waiting[0]):
        return heapq.heappop(made)[2]
    return waiting.popleft()[2]


def _joined(first: Shares, second: Shares, num_parts: int) -> Shares:
    """Largest share to smallest. Of equal sums the first stays first."""
    if len(first) + len(second) <= num_parts:  # each meets an empty one
        shares = first + second[::-1]
    else:
        pairs = zip(_padded(first, num_parts), reversed(_padded(second, num_parts)), strict=True)
        shares = [(a + b, rows + others) for (a, rows), (b, others) in pairs]
    shares.sort(key=SUM, reverse=True)  # keeps the order of equals: reversed here is descending, and no more
    return shares


def _padded(shares: Shares, num_parts: int) -> Shares:
    return shares if len(shares) == num_parts else shares + [EMPTY] * (num_parts - len(shares))
