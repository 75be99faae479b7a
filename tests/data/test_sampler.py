"""Epochs without repetition, and resuming."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.errors import ConfigError, DataError

sizes = st.integers(1, 30).flatmap(lambda items: st.tuples(st.just(items), st.integers(1, items)))


@settings(deadline=None, max_examples=150)
@given(size=sizes, seed=st.integers(0, 1000))
def test_every_item_comes_once_an_epoch_and_never_twice_in_a_batch(size: tuple[int, int], seed: int) -> None:
    num_items, batch_size = size
    sampler = ResumableSampler(num_items, batch_size, seed)
    stream: list[int] = []
    while len(stream) < 5 * num_items:
        batch = sampler.next_batch()
        assert len(set(batch)) == len(batch) == batch_size
        stream.extend(batch)
    for epoch in range(5):
        assert sorted(stream[epoch * num_items : (epoch + 1) * num_items]) == list(range(num_items))


@settings(deadline=None, max_examples=150)
@given(size=sizes, seed=st.integers(0, 1000), batches_before=st.integers(0, 40))
def test_a_restored_sampler_goes_on_with_the_batches_that_would_have_come(
    size: tuple[int, int], seed: int, batches_before: int
) -> None:
    num_items, batch_size = size
    sampler = ResumableSampler(num_items, batch_size, seed)
    for _ in range(batches_before):
        sampler.next_batch()
    state = json.loads(json.dumps(sampler.state()))
    restored = ResumableSampler.from_state(state, num_items=num_items, batch_size=batch_size)
    assert [restored.next_batch() for _ in range(8)] == [sampler.next_batch() for _ in range(8)]


def test_the_epoch_counts_completed_passes() -> None:
    sampler = ResumableSampler(num_items=10, batch_size=4, seed=0)
    epochs = []
    for _ in range(5):
        sampler.next_batch()
        epochs.append(sampler.epoch)
    assert epochs == [0, 0, 1, 1, 2]
    assert sampler.state() == {"num_items": 10, "batch_size": 4, "seed": 0, "epoch": 2, "position": 0}


def test_epochs_and_seeds_give_different_orders() -> None:
    orders = set()
    for seed in (0, 1):
        sampler = ResumableSampler(num_items=50, batch_size=50, seed=seed)
        orders |= {sampler.next_batch() for _ in range(3)}
    assert len(orders) == 6


def test_the_first_item_of_an_epoch_is_uniform_although_batches_cross_the_boundary() -> None:
    firsts: Counter[int] = Counter()
    for seed in range(600):
        sampler = ResumableSampler(num_items=6, batch_size=4, seed=seed)
        firsts[[item for _ in range(2) for item in sampler.next_batch()][6]] += 1
    assert all(60 < firsts[item] < 145 for item in range(6))  # 100 expected; 4.5 standard deviations are 41


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"batch_size \(8\) must lie between 1 and the number of items \(5\)"):
        ResumableSampler(num_items=5, batch_size=8, seed=0)


@pytest.mark.parametrize(("num_items", "batch_size", "field"), [(11, 4, "num_items"), (10, 5, "batch_size")])
def test_a_state_of_other_data_or_batches_is_an_error(num_items: int, batch_size: int, field: str) -> None:
    state = ResumableSampler(num_items=10, batch_size=4, seed=0).state()
    with pytest.raises(DataError, match=field):
        ResumableSampler.from_state(state, num_items=num_items, batch_size=batch_size)
