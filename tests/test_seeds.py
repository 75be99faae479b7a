"""Seeds of responses: all different, and the same one by one and many at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.seeds import request_seed, request_seeds

words = st.integers(0, 2**32 - 1) | st.integers(0, 9)
orders = st.lists(words, max_size=20)


def test_seeds_of_steps_orders_and_runs_are_all_different_and_fit_31_bits() -> None:
    seeds = [seed for run in range(3) for step in range(20) for seed in request_seeds(run, step, range(20))]
    assert len(set(seeds)) == 3 * 20 * 20
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_seeds_are_those_of_earlier_runs() -> None:
    # Recorded runs and saved states depend on them: written down, so that neither form may change.
    assert request_seeds(3, 7, [0, 1, 31999]) == [1290012232, 1501564303, 2145218149]
    assert [request_seed(3, 7, order) for order in (0, 1, 31999)] == [1290012232, 1501564303, 2145218149]


@settings(deadline=None, max_examples=200)
@given(seed=words | st.integers(0, 2**70), step=words, orders=orders | st.lists(st.integers(0, 2**40), max_size=4))
def test_many_seeds_at_once_are_those_of_numpys_seed_sequence(seed: int, step: int, orders: list[int]) -> None:
    assert request_seeds(seed, step, orders) == [request_seed(seed, step, order) for order in orders]


def test_a_negative_number_is_an_error_in_either_form() -> None:
    for numbers in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        with pytest.raises(ValueError, match="non-negative"):
            request_seed(*numbers)
        with pytest.raises(ValueError, match="non-negative"):
            request_seeds(*numbers[:2], [0, numbers[2]])
