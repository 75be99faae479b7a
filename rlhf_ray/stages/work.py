"""What a rank is given: its share of a global batch, cut into micro-batches. Imports no model and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rlhf_ray.data.batching import plan_minibatches
from rlhf_ray.data.collate import TokenSequence, response_sequence
from rlhf_ray.errors import DataError

RawScores: TypeAlias = tuple[tuple[float, ...], ...]  # of K responses what each of H heads says


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
    pairs: tuple[tuple[int, int], ...]  # (winner, loser); of a soft label the likelier winner first
    gaps: tuple[float, ...]  # ranks between winner and loser, one a pair
    probabilities: tuple[float, ...] = ()  # that the winner is the better, one a pair; none at all: all are certain
    axis: str = ""  # what was compared; empty: the whole

    @property
    def ahead(self) -> tuple[int, ...]:
        """Of every response, how many it beats minus how many beat it. Above 0 it is desirable (KTO), below 0 not."""
        return tuple(
            sum((row == winner) - (row == loser) for winner, loser in self.pairs) for row in range(len(self.sequences))
        )


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


@dataclass(frozen=True)
class FlatPairs:
    """The pairs of several rankings: rows count through all of their sequences. A ranking's pairs weigh 1 together."""

    winners: list[int]
    losers: list[int]
    weights: list[float]
    gaps: list[float]
    probabilities: list[float]  # that the winner is the better


def flat_pairs(rankings: Sequence[TokenizedRanking]) -> FlatPairs:
    """All pairs of ``rankings``."""
    found, offset = FlatPairs([], [], [], [], []), 0
    for ranking in rankings:
        probabilities = ranking.probabilities or (1.0,) * len(ranking.pairs)
        for (winner, loser), gap, probability in zip(ranking.pairs, ranking.gaps, probabilities, strict=True):
            found.winners.append(offset + winner)
            found.losers.append(offset + loser)
            found.weights.append(1.0 / len(ranking.pairs))
            found.gaps.append(gap)
            found.probabilities.append(probability)
        offset += len(ranking.sequences)
    return found


# ------------------------------------------------------------------------------------------------------ labelled steps
@dataclass(frozen=True)
class LabelledSteps:
    """A whole sequence (prompt and response) of which the last token of every step counts, and a label for each."""

    index: int  # place in the caller's list
    sequence: TokenSequence
    labels: tuple[bool, ...]


@dataclass(frozen=True)
class StepWork:
    """One rank's share of a batch of labelled responses, and how many steps all ranks share."""

    micro_batches: tuple[tuple[LabelledSteps, ...], ...]
    num_steps: int


def plan_steps(responses: Sequence[LabelledSteps], *, num_ranks: int, max_tokens: int) -> tuple[StepWork, ...]:
    """Split one batch over ranks, balanced by tokens, each share cut into micro-batches."""
    lengths = [len(response.sequence) for response in responses]
    plan = plan_minibatches(lengths=lengths, num_minibatches=1, num_ranks=num_ranks, max_tokens=max_tokens, seed=0)
    num_steps = sum(len(response.labels) for response in responses)
    return tuple(
        StepWork(tuple(tuple(responses[i] for i in rows) for rows in rank.micro_batches), num_steps)
        for rank in plan.minibatches[0].ranks
    )


# --------------------------------------------------------------------------------------------- rankings and a reference
@dataclass(frozen=True)
class ReferencedRanking:
    """A ranking and what the frozen reference says of its responses; for KTO also of a response to another prompt."""

    ranking: TokenizedRanking
    reference_logprobs: tuple[float, ...]  # of each response, summed over its tokens; none where a loss needs none
    mismatched: tuple[TokenSequence, ...] = ()  # this prompt with a response to another one: one for KTO, else none
    mismatched_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class PreferenceWork:
    """One rank's share of a batch of rankings. ``weight`` divides the loss: rankings, or for KTO labelled responses."""

    micro_batches: tuple[tuple[ReferencedRanking, ...], ...]
    num_rankings: int
    weight: float


def plan_preferences(
    items: Sequence[ReferencedRanking], *, single_responses: bool, num_ranks: int, max_tokens: int
) -> tuple[PreferenceWork, ...]:
    """Split one batch over ranks, as :func:`plan_rankings` does. ``single_responses``: the loss is over responses."""
    by_index = {item.ranking.index: item for item in items}
    labelled = sum(ahead != 0 for item in items for ahead in item.ranking.ahead)
    weight = float(labelled if single_responses else len(items))
    return tuple(
        PreferenceWork(tuple(tuple(by_index[r.index] for r in rows) for rows in work.micro_batches), len(items), weight)
        for work in plan_rankings([item.ranking for item in items], num_ranks=num_ranks, max_tokens=max_tokens)
    )


def mismatch(ranking: TokenizedRanking, other: TokenizedRanking) -> TokenSequence:
    """The prompt of one ranking with the first response of another."""
    prompt, answer = ranking.sequences[0], other.sequences[0]
    return response_sequence(prompt.token_ids[~prompt.mask], answer.token_ids[answer.mask])


def mismatches(rankings: Sequence[TokenizedRanking]) -> list[TokenSequence]:
    """For each ranking its prompt with a response to another prompt: that of the nearest ranking before, in a circle.

    Neighbours may share a prompt, which several annotators have judged. Raises DataError where all do.
    """
    prompts = [tuple(r.sequences[0].token_ids[~r.sequences[0].mask].tolist()) for r in rankings]
    if len(set(prompts)) < 2:
        raise DataError("dpo.loss=kto compares with responses to other prompts, and all rankings have one; bring more")
    found = []
    for place, ranking in enumerate(rankings):
        other = place - 1
        while prompts[other] == prompts[place]:
            other -= 1
        found.append(mismatch(ranking, rankings[other]))
    return found
