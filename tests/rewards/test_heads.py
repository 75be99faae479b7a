"""How the heads of a reward model add up, on which scale, and what a checkpoint keeps of it."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.heads import WHOLE, Heads, Scale, checkpoint_settings, read_heads

THREE = Heads(("helpful", "honest", "harmless"), (1.0, 0.5, 2.0))
RAW = np.array([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]])


def test_the_whole_is_the_weighted_sum_and_an_axis_is_its_head_alone() -> None:
    assert THREE.score(RAW).tolist() == [1 + 1 + 6, 3 + 0 - 2]
    assert THREE.score(RAW, "honest").tolist() == [2.0, 0.0]
    assert Heads().score(RAW[:, :1]).tolist() == [1.0, 3.0]


def test_scores_have_mean_0_and_deviation_1_on_what_was_measured() -> None:
    scale = Scale.measured(THREE, RAW)
    for axis in (WHOLE, *THREE.axes):
        normal = scale.normalised(THREE.score(RAW, axis), axis)
        assert (normal.mean(), normal.std()) == (pytest.approx(0.0), pytest.approx(1.0))


def test_a_head_that_says_one_thing_of_everything_is_not_divided_by_nothing() -> None:
    scale = Scale.measured(Heads(), np.full((4, 1), 3.0))
    assert np.isfinite(scale.normalised(np.array([3.0, 4.0]))).all()


@pytest.mark.parametrize("heads", [Heads(), THREE])
def test_a_checkpoint_keeps_what_was_measured(heads: Heads) -> None:
    scale = Scale.measured(heads, RAW[:, : heads.num_heads])
    assert read_heads(checkpoint_settings(heads, scale), path="x") == (heads, scale)


def test_a_model_that_was_never_measured_is_served_as_it_is() -> None:
    assert read_heads({"id2label": {"0": "LABEL_0"}}, path="x") == (Heads(), Scale({WHOLE: 0.0}, {WHOLE: 1.0}))


def test_several_heads_that_do_not_say_how_they_add_up_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"path \('theirs'\) has 2 heads and no score_weights"):
        read_heads({"id2label": {"0": "a", "1": "b"}}, path="theirs")


def test_a_weight_for_every_head() -> None:
    with pytest.raises(ValueError, match="must be one a head, of 2"):
        Heads(("a", "b"), (1.0,))
