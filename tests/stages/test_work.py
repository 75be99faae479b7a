"""What ranks are given of rankings: pairs, labels, mismatched responses, shares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlhf_ray.data.collate import response_sequence
from rlhf_ray.errors import DataError
from rlhf_ray.records import IntArray
from rlhf_ray.stages.work import (
    ReferencedRanking,
    TokenizedRanking,
    flat_pairs,
    mismatch,
    mismatches,
    plan_preferences,
)


def ids(*tokens: int) -> IntArray:
    return np.array(tokens, dtype=np.int32)


def ranking(index: int, *responses: IntArray, pairs: tuple[tuple[int, int], ...]) -> TokenizedRanking:
    sequences = tuple(response_sequence(ids(90 + index, 91), response) for response in responses)
    return TokenizedRanking(index, sequences, pairs, tuple(1.0 + i for i in range(len(pairs))))


# Response 2 is the best, 0 and 3 are tied below it, 1 is the worst.
FOUR = ranking(0, ids(1), ids(2, 3), ids(4), ids(5), pairs=((2, 0), (2, 1), (2, 3), (0, 1), (3, 1)))
TWO = ranking(1, ids(6, 7, 8), ids(9), pairs=((1, 0),))


def test_a_response_is_ahead_by_those_it_beats_minus_those_that_beat_it() -> None:
    assert FOUR.ahead == (0, -3, 3, 0)
    assert TWO.ahead == (-1, 1)


def test_rows_count_on_from_ranking_to_ranking_and_a_ranking_weighs_one() -> None:
    pairs = flat_pairs([FOUR, TWO])
    assert pairs.winners == [2, 2, 2, 0, 3, 5]
    assert pairs.losers == [0, 1, 3, 1, 1, 4]
    assert pairs.weights == pytest.approx([0.2] * 5 + [1.0])
    assert pairs.gaps == [1.0, 2.0, 3.0, 4.0, 5.0, 1.0]
    assert pairs.probabilities == [1.0] * 6  # nobody has said otherwise


def test_a_pair_keeps_how_sure_it_is() -> None:
    soft = replace(TWO, probabilities=(0.7,))
    assert flat_pairs([FOUR, soft]).probabilities == [1.0] * 5 + [0.7]


def test_a_mismatch_is_one_prompt_with_the_other_s_first_response() -> None:
    made = mismatch(FOUR, TWO)
    assert made.token_ids.tolist() == [90, 91, 6, 7, 8]
    assert made.mask.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize(("single", "weight"), [(False, 6.0), (True, 12.0)])
def test_every_rank_knows_the_weight_of_the_whole_batch(single: bool, weight: float) -> None:
    items = [ReferencedRanking(replace(each, index=i), (0.5,)) for i, each in enumerate([FOUR, TWO] * 3)]
    works = plan_preferences(items, single_responses=single, num_ranks=2, max_tokens=20)
    assert [(work.num_rankings, work.weight) for work in works] == [(6, weight)] * 2
    assert len({len(work.micro_batches) for work in works}) == 1
    dealt = [each.ranking.index for work in works for rows in work.micro_batches for each in rows]
    assert sorted(dealt) == [0, 1, 2, 3, 4, 5]


def test_a_mismatched_response_never_belongs_to_the_same_prompt_though_neighbours_share_one() -> None:
    made = mismatches([FOUR, FOUR, TWO, FOUR])  # FOUR's first response is 1, TWO's 6, 7, 8
    assert [each.token_ids[each.mask].tolist() for each in made] == [[6, 7, 8], [6, 7, 8], [1], [6, 7, 8]]
    assert [each.token_ids[~each.mask].tolist() for each in made] == [[90, 91], [90, 91], [91, 91], [90, 91]]
    with pytest.raises(DataError, match="all rankings have one; bring more"):
        mismatches([FOUR, FOUR])
