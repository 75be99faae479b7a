"""Sequences become right-padded batches, and per-token values find their places."""

from __future__ import annotations

import numpy as np
import torch

from rlhf_ray.data.collate import TokenSequence, collate, response_sequence, spread


def sequence(ids: list[int], mask: list[int]) -> TokenSequence:
    return TokenSequence(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.bool_))


def test_shorter_rows_are_padded_on_the_right() -> None:
    batch = collate([sequence([5, 6, 7], [0, 1, 1]), sequence([8, 9], [0, 1])])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.mask.tolist() == [[False, True, True], [False, True, False]]
    assert batch.input_ids.dtype == torch.int64
    assert batch.padding == (1, 6)


def test_no_sequences_give_a_row_that_attends_and_of_which_nothing_counts() -> None:
    batch = collate([])
    assert batch.input_ids.shape == (1, 2)
    assert batch.attention_mask.all()
    assert not batch.mask.any()


def test_a_single_token_is_padded_to_two_so_that_there_is_a_next_one() -> None:
    batch = collate([sequence([5], [0])])
    assert batch.input_ids.tolist() == [[5, 0]]
    assert batch.attention_mask.tolist() == [[True, False]]


def test_a_response_sequence_counts_the_response_only() -> None:
    made = response_sequence(np.array([3, 4], dtype=np.int32), np.array([5, 6, 1], dtype=np.int32))
    assert made.token_ids.tolist() == [3, 4, 5, 6, 1]
    assert made.mask.tolist() == [False, False, True, True, True]
    assert len(made) == 5


def test_values_of_each_response_are_spread_to_its_own_tokens() -> None:
    batch = collate([sequence([5, 6, 7, 8], [0, 1, 1, 1]), sequence([8, 9, 4], [0, 0, 1])])
    values = [np.array([0.5, 1.5, 2.5], dtype=np.float32), np.array([-1.0], dtype=np.float32)]
    assert spread(values, batch).tolist() == [[0.0, 0.5, 1.5, 2.5], [0.0, 0.0, -1.0, 0.0]]
    assert spread([], collate([])).tolist() == [[0.0, 0.0]]


def test_a_batch_moves_with_all_of_its_tensors() -> None:
    moved = collate([sequence([5, 6], [0, 1])]).to(torch.device("meta"))
    assert {moved.input_ids.device.type, moved.attention_mask.device.type, moved.mask.device.type} == {"meta"}
