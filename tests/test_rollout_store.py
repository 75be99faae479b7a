"""A step on disk: what is read has the bits of what was written, and what is damaged is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.errors import DataError
from rlhf_ray.records import AdaptersOff, FloatArray, Rollout, Score
from rlhf_ray.rollout_store import (
    KINDS_FILE,
    SavedShard,
    SavedStep,
    StepRecord,
    StepWriter,
    step_directory,
    write_kinds,
    write_step,
)
from rlhf_ray.rollout_store import (
    ROLLOUTS as ROLLOUTS_FOLDER,
)

STRANGE = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45, 1 / 3], dtype=np.float32)


def rollout(order: int, length: int) -> Rollout:
    generator = np.random.default_rng(order)
    return Rollout(
        rollout_id=f"3/p{order}/0",
        prompt_id=f"p{order}",
        order=order,
        prompt_ids=generator.integers(0, 2**31 - 1, 1 + order).astype(np.int32),
        response_ids=generator.integers(0, 2**31 - 1, length).astype(np.int32),
        rollout_logprobs=np.resize(STRANGE, length),
        policy_versions=generator.integers(0, 9, length).astype(np.int32),
        finish_reason="stop" if order % 2 else "length",
        seed=2**31 - 1 - order,
    )


SCORES = (
    Score(1 / 3, parts={"a": -0.0, "b": 1e-300}, step_rewards=((0, 0.1), (4, -1e30))),
    Score(math.nan, failed="b: timed out"),
    Score(-math.inf, parts={"a": math.inf}),
)
ROLLOUTS = (rollout(0, 7), rollout(1, 0), rollout(2, 9))
RECORD = StepRecord(3, 0.1 + 0.2, baselines={"p0": 1 / 7}, trained={0: SCORES[0], 2: replace(SCORES[2], total=0.25)})


def logprobs(width: tuple[int, ...] = ()) -> tuple[FloatArray, ...]:
    generator = np.random.default_rng(5)
    return tuple(generator.normal(size=(len(r.response_ids), *width)).astype(np.float32) for r in ROLLOUTS)


def bits(shard: SavedShard) -> list[object]:
    """Everything in a shard as things that are equal only where every bit is."""
    fields = [
        (name, value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else (name, value)
        for r in shard.rollouts
        for name, value in vars(r).items()
    ]
    reference: object = shard.reference
    if isinstance(shard.reference, tuple):
        reference = [(array.dtype, array.shape, array.tobytes()) for array in shard.reference]
    return [*fields, reference, repr(shard.scores)]


@pytest.mark.parametrize("reference", [logprobs(), logprobs((11,)), AdaptersOff(), None])
def test_what_is_read_has_the_bits_of_what_was_written(
    tmp_path: Path, reference: tuple[FloatArray, ...] | AdaptersOff | None
) -> None:
    shard = SavedShard(ROLLOUTS, reference, SCORES)
    write_step(tmp_path / "step", RECORD, [shard, replace(shard, scores=SCORES[::-1])])
    saved = SavedStep(tmp_path / "step")
    assert repr(saved.record) == repr(RECORD)
    assert [bits(s) for s in saved.shards()] == [bits(shard), bits(replace(shard, scores=SCORES[::-1]))]
    assert saved.rollout_ids(0) == ["3/p0/0", "3/p1/0", "3/p2/0"]


def test_the_size_of_a_step_is_that_of_its_files(tmp_path: Path) -> None:
    size = write_step(tmp_path / "step", RECORD, [SavedShard(ROLLOUTS, None, SCORES)])
    assert size == sum(path.stat().st_size for path in (tmp_path / "step").iterdir())


def test_a_step_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    directory = step_directory(tmp_path, 3)
    writer = StepWriter(directory)
    writer.add(SavedShard(ROLLOUTS, None, SCORES))
    assert not directory.exists()
    StepWriter(directory).finish(RECORD)
    assert directory.name == "step_000003"
    assert len(SavedStep(directory)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003"]


def test_a_step_that_is_done_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    shard = SavedShard(ROLLOUTS, None, SCORES)
    write_step(tmp_path / "step", RECORD, [shard, shard])
    write_step(tmp_path / "step", replace(RECORD, kl_coef=0.5), [shard])
    saved = SavedStep(tmp_path / "step")
    assert (saved.record.kl_coef, len(saved)) == (0.5, 1)


# -------------------------------------------------------------------------------------------------------------- damaged
def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def without_a_name(path: Path) -> None:
    """A step that was written so, checksums and all."""
    content = json.loads((path / "step.json").read_text())
    del content["shards"][0]["file"]
    (path / "step.json").write_text(json.dumps(content))
    from rlhf_ray.directories import FileContent

    found = FileContent.of(path / "step.json")
    manifest = json.loads((path / "files.json").read_text())
    manifest["files"]["step.json"] = [found.size, found.checksum]
    (path / "files.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "files.json").unlink(), r"step: not a whole step \(FileNotFoundError"),
        (lambda d: (d / "files.json").write_text("{"), r"step: not a whole step \(JSONDecodeError"),
        (lambda d: (d / "shard_00000.safetensors").unlink(), r"not a whole step .*shard_00000\.safetensors"),
        (lambda d: (d / "shard_00000.safetensors").write_bytes(b"x"), r"safetensors has 1 bytes, not \d+"),
        (lambda d: flip(d / "shard_00000.safetensors"), r"step/shard_00000\.safetensors: .*its checksum differs; copy"),
        (lambda d: flip(d / "step.json"), r"step/step\.json: .*its checksum differs; copy"),
        (without_a_name, r"step/step\.json: cannot be understood \(KeyError: 'file'\)"),
    ],
)
def test_a_damaged_step_is_refused_with_file_and_remedy(
    tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    write_step(tmp_path / "step", RECORD, [SavedShard(ROLLOUTS, logprobs(), SCORES)])
    damage(tmp_path / "step")
    with pytest.raises(DataError, match=says):
        SavedStep(tmp_path / "step").shards()


def test_a_step_that_is_not_there_says_how_to_have_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"step_000009: no such directory.*ppo\.save_rollouts=true"):
        SavedStep(step_directory(tmp_path, 9))


def test_kinds_of_prompts_lie_beside_the_steps(tmp_path: Path) -> None:
    write_kinds(tmp_path / "ppo" / ROLLOUTS_FOLDER, {"p0": "fact"})
    assert json.loads((tmp_path / "ppo" / "rollouts" / KINDS_FILE).read_text()) == {"p0": "fact"}
