"""A state is no rank's: saved by some ranks under one ZeRO stage, taken up by others under another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests import equivalence, trainers
from tests.equivalence import PLAIN, Trajectory, Variant
from tests.ranks import ranks
from tests.test_equivalence import LIMITS
from tests.trainers import PpoCase, means

pytestmark = pytest.mark.integration

UNTIL, THEN = (1, 2), (3, 4, 5)
SHAPES: Mapping[str, Variant] = {
    "1 rank, ZeRO 0": Variant(1, 0),
    "2 ranks, ZeRO 0": Variant(2, 0),
    "1 rank, ZeRO 2": Variant(1, 2),
    "2 ranks, ZeRO 2": Variant(2, 2),
    "2 ranks, ZeRO 3": Variant(2, 3),
}


@dataclass
class Saved:
    """States after two steps, by the shape that wrote them, and the run that was never stopped."""

    case: PpoCase
    directory: Path
    plain: Trajectory
    written: set[str] = field(default_factory=set)

    def by(self, shape: str) -> Path:
        if shape not in self.written:
            variant = SHAPES[shape]
            case = replace(self.case, training=variant.training)
            ranks(variant.world_size).run(trainers.saved_ppo_steps, case, str(self.directory / shape), UNTIL)
            self.written.add(shape)
        return self.directory / shape


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    directory = tmp_path_factory.mktemp("states")
    case = equivalence.cases(directory)["GAE-PPO"]
    return Saved(case, directory, equivalence.trajectory(case, PLAIN))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1 rank, ZeRO 0", "2 ranks, ZeRO 3"),
        ("1 rank, ZeRO 0", "2 ranks, ZeRO 2"),
        ("2 ranks, ZeRO 3", "1 rank, ZeRO 0"),
        ("2 ranks, ZeRO 2", "2 ranks, ZeRO 3"),
        ("2 ranks, ZeRO 3", "1 rank, ZeRO 2"),
        ("2 ranks, ZeRO 2", "2 ranks, ZeRO 0"),
    ],
)
def test_another_split_goes_on_where_this_one_was(saved: Saved, before: str, after: str) -> None:
    variant = SHAPES[after]
    case = replace(saved.case, training=variant.training)
    outcomes = ranks(variant.world_size).run(trainers.loaded_ppo_steps, case, str(saved.by(before)), THEN)
    rest = Trajectory(means(outcomes), outcomes[0].policy, outcomes[0].critic)
    whole = replace(saved.plain, metrics=saved.plain.metrics[len(UNTIL) :])
    found = equivalence.difference(whole, rest).numbers
    assert {name: value for name, value in found.items() if not value <= LIMITS[name][0]} == {}


def test_the_same_split_goes_on_bit_for_bit(saved: Saved) -> None:
    outcomes = ranks(1).run(
        trainers.loaded_ppo_steps,
        replace(saved.case, training=PLAIN.training),
        str(saved.by("1 rank, ZeRO 0")),
        THEN,
    )
    assert means(outcomes) == list(saved.plain.metrics[len(UNTIL) :])
    assert trainers.largest_difference(outcomes[0].policy, saved.plain.policy) == 0.0
    assert trainers.largest_difference(outcomes[0].critic, saved.plain.critic) == 0.0


def test_without_the_moments_it_would_go_another_way(saved: Saved, tmp_path: Path) -> None:
    """The limits see a lost optimizer state: what they let through is not what a forgetful resume gives."""
    outcomes = ranks(1).run(
        trainers.loaded_ppo_steps,
        replace(saved.case, training=PLAIN.training),
        str(saved.by("1 rank, ZeRO 0")),
        THEN,
        True,
    )
    rest = Trajectory(means(outcomes), outcomes[0].policy, outcomes[0].critic)
    whole = replace(saved.plain, metrics=saved.plain.metrics[len(UNTIL) :])
    found = equivalence.difference(whole, rest).numbers
    assert found["policy, mean"] > 10 * LIMITS["policy, mean"][0]
