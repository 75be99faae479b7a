"""What a rank is given: its share of a global batch, cut into micro-batches. Imports no model and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_ray.data.batching import plan_minibatches
from rlhf_ray.data.collate import TokenSequence


@dataclass(frozen=True)
class SequenceWork:
    """One rank's share of a batch of sequences. ``num_tokens`` counts the tokens that count on all ranks together."""

    micro_batches: tuple[tuple[TokenSequence, ...], ...]
    num_tokens: int


def plan_sequences(sequences: Sequence[TokenSequence], *, num_ranks: int, max_tokens: int) -> tuple[SequenceWork, ...]:
    """Split one batch over ranks, balanced by tokens, each share cut into micro-batches."""
    lengths = [len(sequence) for sequence in sequences]
    plan = plan_minibatches(lengths=lengths, num_minibatches=1, num_ranks=num_ranks, max_tokens=max_tokens, seed=0)
    num_tokens = int(sum(np.count_nonzero(sequence.mask[1:]) for sequence in sequences))
    return tuple(
        SequenceWork(tuple(tuple(sequences[i] for i in rows) for rows in rank.micro_batches), num_tokens)
        for rank in plan.minibatches[0].ranks
    )


@dataclass(frozen=True)
class TokenizedRanking:
    """K whole sequences (prompt and response) and the pairs among them that were decided."""

    index: int  # place in the caller's list
    sequences: tuple[TokenSequence, ...]
    pairs: tuple[tuple[int, int], ...]  # (winner, loser)
    gaps: tuple[float, ...]  # ranks between winner and loser, one a pair


@dataclass(frozen=True)
class RankingWork:
    """One rank's share of a batch of rankings, and how many rankings all ranks share."""

    micro_batches: tuple[tuple[TokenizedRanking, ...], ...]
    num_rankings: int


def plan_rankings(rankings: Sequence[TokenizedRanking], *, num_ranks: int, max_tokens: int) -> tuple[RankingWork, ...]:
    """Split one batch over ranks. A ranking is never split: its pairs need all of its rows."""
    widest = max(len(ranking.sequences) for ranking in rankings)
    longest = [max(len(s) for s in ranking.sequences) for ranking in rankings]
    plan = plan_minibatches(
        lengths=longest, num_minibatches=1, num_ranks=num_ranks, max_tokens=max(1, max_tokens // widest), seed=0
    )
    return tuple(
        RankingWork(tuple(tuple(rankings[i] for i in rows) for rows in rank.micro_batches), len(rankings))
        for rank in plan.minibatches[0].ranks
    )
