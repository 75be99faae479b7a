"""Running moments against the statistics module on everything seen."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algo.running import RunningMoments

batches_of_scores = st.lists(st.lists(st.floats(-1e3, 1e3, width=32), max_size=8), min_size=1, max_size=6).filter(
    lambda batches: sum(map(len, batches)) >= 2
)


@settings(deadline=None, max_examples=60)
@given(batches=batches_of_scores, cut=st.integers(0, 6))
def test_moments_of_batches_equal_those_of_everything_however_they_are_merged(
    batches: list[list[float]], cut: int
) -> None:
    left, right = RunningMoments(), RunningMoments()
    for index, batch in enumerate(batches):
        if index < cut:
            left = left.updated(torch.tensor(batch))
        else:
            right = right.updated(torch.tensor(batch))
    seen = [score for batch in batches for score in batch]
    merged = left.merged(right)
    assert merged.count == len(seen)
    assert merged.mean == pytest.approx(statistics.fmean(seen), rel=1e-9, abs=1e-6)
    assert merged.variance == pytest.approx(statistics.variance(seen), rel=1e-9, abs=1e-6)
    assert right.merged(left).variance == pytest.approx(merged.variance, rel=1e-9, abs=1e-6)


def test_nothing_seen_has_no_spread() -> None:
    nothing = RunningMoments().updated(torch.zeros(0)).merged(RunningMoments())
    assert (nothing.count, nothing.mean, nothing.variance, nothing.std) == (0, 0.0, 0.0, 0.0)


def test_a_million_scores_far_from_zero_keep_their_variance() -> None:
    moments = RunningMoments()
    for _ in range(1000):
        moments = moments.updated(torch.tensor([1e6 - 1, 1e6 + 1] * 500, dtype=torch.float64))
    assert moments.std == pytest.approx(1.0, rel=1e-5)


def test_restored_moments_are_those_that_were_saved() -> None:
    moments = RunningMoments().updated(torch.tensor([1.0, 2.0, 4.0]))
    assert RunningMoments.from_state(json.loads(json.dumps(moments.state()))) == moments
