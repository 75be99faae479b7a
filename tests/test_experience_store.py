"""What tokens were worth on disk: the bits of what was written, found by rollout in whichever rank's file it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.errors import DataError
from rlhf_ray.experience_store import ARRAYS, SavedExperience, read_experience, write_experience


def worth(order: int, length: int, *, has_values: bool = True) -> SavedExperience:
    drawn = np.random.default_rng(order).normal(size=(4, length)).astype(np.float32)
    return SavedExperience(drawn[0], drawn[1], drawn[2], drawn[3] if has_values else None)


def assert_same(found: SavedExperience | None, expected: SavedExperience) -> None:
    assert found is not None
    for name in ARRAYS:
        ours, theirs = vars(found)[name], vars(expected)[name]
        assert (ours is None) == (theirs is None), name
        assert ours is None or ours.tobytes() == theirs.tobytes(), name


@pytest.mark.parametrize("has_values", [True, False])
def test_every_rollout_is_found_with_its_bits_on_whichever_rank_it_was_trained(
    tmp_path: Path, has_values: bool
) -> None:
    first = {7: worth(7, 3, has_values=has_values), 2: worth(2, 0, has_values=has_values)}
    second = {4: worth(4, 5, has_values=has_values)}
    write_experience(tmp_path, 0, first)
    write_experience(tmp_path, 1, second)
    write_experience(tmp_path, 2, {})
    for order, expected in {**first, **second}.items():
        assert_same(read_experience(tmp_path, order), expected)
    assert read_experience(tmp_path, 3) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "experience_00000.safetensors",
        "experience_00001.safetensors",
    ]


def test_a_step_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    assert read_experience(tmp_path, 0) is None


@pytest.mark.parametrize("content", [b"", b"no such file", b"cut"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    write_experience(tmp_path, 0, {0: worth(0, 2)})
    path = tmp_path / "experience_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-4] if content == b"cut" else content)
    with pytest.raises(DataError, match=r"experience_00000\.safetensors: cannot be understood"):
        read_experience(tmp_path, 0)
