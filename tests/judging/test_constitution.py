"""Principles are read with their mistakes named, and drawn by weight and kind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.data.tasks import build_task
from rlhf_ray.data.world_prompts import KINDS
from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.constitution import Constitution, Principle, read_constitution

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GOOD = {"name": "n", "comparison": "which?", "critique": "what?", "revision": "better"}


@pytest.mark.parametrize("path", sorted((CONFIGS / "constitutions").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_constitution_can_be_read_and_is_named_as_its_file(path: Path) -> None:
    constitution = read_constitution(str(path))
    assert constitution.name == path.stem
    assert {principle.axis for principle in constitution.principles} <= {"helpful", "honest", "harmless"}


def test_the_microworld_s_constitution_has_a_principle_for_every_kind_and_axes_that_its_rubric_grades() -> None:
    constitution = read_constitution(str(CONFIGS / "constitutions" / "microworld.yaml"))
    assert all(any(p.applies_to(kind) for p in constitution.principles) for kind in KINDS)
    task = build_task(load_config(CONFIGS / "quickstart.yaml").data)
    assert {p.axis for p in constitution.principles} <= task.grade(task.prompts("train")[0], "yes").keys()


def test_principles_are_drawn_by_weight_and_the_same_place_draws_the_same() -> None:
    constitution = Constitution("c", (Principle("often", weight=3.0), Principle("seldom", weight=1.0)))
    drawn = [constitution.draw("", 0, place) for place in range(2000)]
    assert drawn == [constitution.draw("", 0, place) for place in range(2000)]
    counts = Counter(principle.name for principle in drawn if principle)
    assert 0.72 < counts["often"] / 2000 < 0.78
    assert drawn != [constitution.draw("", 1, place) for place in range(2000)]  # another seed


def test_a_principle_is_drawn_for_the_kinds_that_it_is_about() -> None:
    constitution = Constitution("c", (Principle("a", kinds=("x",)), Principle("b", kinds=("y",)), Principle("c")))
    assert {constitution.draw("x", place).name for place in range(50)} == {"a", "c"}  # type: ignore[union-attr]
    assert Constitution("c", (Principle("a", kinds=("x",)),)).draw("z", 0) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x", "has no principles"),
        ("principles: [{name: a, comparison: b, critique: c}]", "has no revision in principle a"),
        ("principles: [{comparison: b}]", "has no name in principle number 1"),
        (f"principles: [{ {**GOOD, 'weight': 0} }]".replace("'", ""), "the weight 0, which must be above 0"),
        (f"principles: [{GOOD}, {GOOD}]".replace("'", ""), "has two principles of one name"),
        ("principles: [{name: a, wieght: 1}]", r"cannot be read \(.*wieght"),
        ("principles: [", "is not valid YAML"),
    ],
)
def test_a_constitution_that_cannot_be_used_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_constitution(str(tmp_path / "c.yaml"))
    assert caught.value.field == "judge.constitution"


def test_a_constitution_that_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file; choose one of configs/constitutions/"):
        read_constitution(str(tmp_path / "none.yaml"))
