"""Rarer garbage collections: what is loaded is left out, cycles still go, and the end is as the start."""

from __future__ import annotations

import gc
import weakref

import pytest

from rlhf_ray.garbage import THRESHOLDS, rare_collections


class Node:
    """In a cycle with itself."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_loaded_is_left_out_until_the_block_ends_however_it_ends() -> None:
    def fail() -> None:
        with rare_collections():
            assert gc.get_freeze_count() > 1000
            assert gc.get_threshold() == THRESHOLDS
            raise KeyError

    before = gc.get_threshold()
    with pytest.raises(KeyError):
        fail()
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before


def test_cycles_made_within_the_block_are_still_collected() -> None:
    with rare_collections():
        gone = weakref.ref(Node())
        assert gone() is not None
        kept = [[] for _ in range(2 * THRESHOLDS[0])]
        assert len(kept) == 2 * THRESHOLDS[0]
        assert gone() is None
