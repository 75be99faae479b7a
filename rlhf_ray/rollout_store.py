"""One step's rollouts on disk, exactly as they were sampled: tokens, log-probabilities, references, scores.

    step_000012/
      step.json                  step, KL coefficient, baselines, what was trained on; ids and scores by shard
      shard_00000.safetensors    the arrays of one shard, end to end; lengths tell the rollouts apart
      files.json                 size and checksum of those above: a directory without it is not there
      experience_*.safetensors   what the trainer made of it, where it has been trained on (experience_store.py)

What is read has the bits of what was written. Numbers that JSON lacks are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from rlhf_ray.directories import FileContent, NotWholeError, begin, complete, read_manifest
from rlhf_ray.errors import DataError
from rlhf_ray.records import AdaptersOff, ReferenceBlock, Rollout, Score

ROLLOUTS = "rollouts"  # below the stage's directory
KINDS_FILE = "kinds.json"  # in it, of which kind each prompt is: for people, nothing is computed from it
STEP_FILE = "step.json"
MANIFEST = "files.json"
ReferenceKind: TypeAlias = Literal["none", "adapters_off", "arrays"]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SavedShard:
    """Rollouts with what the frozen servers said. The greedy responses of ReMax have no reference."""

    rollouts: tuple[Rollout, ...]
    reference: ReferenceBlock | None
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class StepRecord:
    """What a step was besides its rollouts. ``trained`` holds, by order, the scores that were trained on."""

    step: int
    kl_coef: float
    baselines: Mapping[str, float] = field(default_factory=dict)
    trained: Mapping[int, Score] = field(default_factory=dict)


def step_directory(root: Path, step: int) -> Path:
    """Where step ``step`` lies under ``root``."""
    return root / f"step_{step:06d}"


# -------------------------------------------------------------------------------------------------------------- writing
class StepWriter:
    """Writes one step, a shard at a time, so that no more than one is held. Nothing is there before ``finish``."""

    def __init__(self, directory: Path) -> None:
        self._final = directory
        self._aside = begin(directory)
        self._shards: list[dict[str, object]] = []

    def add(self, shard: SavedShard) -> None:
        """Write the shard's arrays."""
        from safetensors.numpy import save_file

        name = f"shard_{len(self._shards):05d}.safetensors"
        save_file(_arrays(shard), self._aside / name)
        self._shards.append(
            {
                "file": name,
                "reference": _reference_kind(shard.reference),
                "rollouts": [_labels(rollout) for rollout in shard.rollouts],
                "scores": [score_to_json(score) for score in shard.scores],
            }
        )

    def finish(self, record: StepRecord) -> int:
        """Put the step in its place, and give back how many bytes it takes."""
        content = {
            "step": record.step,
            "kl_coef": _number_to_json(record.kl_coef),
            "baselines": {prompt: _number_to_json(value) for prompt, value in record.baselines.items()},
            "trained": {order: score_to_json(score) for order, score in record.trained.items()},
            "shards": self._shards,
        }
        (self._aside / STEP_FILE).write_text(json.dumps(content, allow_nan=False))
        return complete(self._aside, self._final, manifest=MANIFEST)


def write_step(directory: Path, record: StepRecord, shards: Sequence[SavedShard]) -> int:
    """Write one whole step; the bytes that it takes."""
    writer = StepWriter(directory)
    for shard in shards:
        writer.add(shard)
    return writer.finish(record)


def write_kinds(root: Path, kinds: Mapping[str, str]) -> None:
    """Write down which kinds prompts are of, beside the steps in ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    (root / KINDS_FILE).write_text(json.dumps(dict(kinds)))


def _arrays(shard: SavedShard) -> Arrays:
    rollouts = shard.rollouts
    arrays: Arrays = {
        "prompt_lengths": np.array([len(r.prompt_ids) for r in rollouts], dtype=np.int64),
        "response_lengths": np.array([len(r.response_ids) for r in rollouts], dtype=np.int64),
        "prompt_ids": np.concatenate([r.prompt_ids for r in rollouts]),
        "response_ids": np.concatenate([r.response_ids for r in rollouts]),
        "rollout_logprobs": np.concatenate([r.rollout_logprobs for r in rollouts]),
        "policy_versions": np.concatenate([r.policy_versions for r in rollouts]),
    }
    if isinstance(shard.reference, tuple):
        arrays["reference"] = np.concatenate(shard.reference)  # [R], or [R, V] where the KL is exact
    return arrays


def _reference_kind(reference: ReferenceBlock | None) -> ReferenceKind:
    if reference is None:
        return "none"
    return "adapters_off" if isinstance(reference, AdaptersOff) else "arrays"


def _labels(rollout: Rollout) -> dict[str, object]:
    return {
        "rollout_id": rollout.rollout_id,
        "prompt_id": rollout.prompt_id,
        "order": rollout.order,
        "finish_reason": rollout.finish_reason,
        "seed": rollout.seed,
    }


# -------------------------------------------------------------------------------------------------------------- reading
class SavedStep:
    """A step on disk. Its record and labels are read at once, a shard's arrays when they are asked for."""

    def __init__(self, directory: Path) -> None:
        """Raises DataError where there is no whole step in ``directory``."""
        self.directory = directory
        remedy = "copy the directory again, or have the step saved again (ppo.save_rollouts=true)"
        if not directory.is_dir():
            raise DataError(f"{directory}: no such directory, and a saved step was expected there; {remedy}")
        try:
            self._files, _ = read_manifest(directory, manifest=MANIFEST, verify=False)
        except NotWholeError as error:
            raise DataError(f"{directory}: not a whole step ({error}); {remedy}") from error
        self._verify(STEP_FILE)
        path = directory / STEP_FILE
        try:
            content = json.loads(path.read_text())
            self.record = _record_of(content)
            self._shards = [_ShardLabels.of(shard) for shard in content["shards"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: cannot be understood ({type(error).__name__}: {error}); {remedy}") from error

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def rollout_ids(self, index: int) -> list[str]:
        """The rollouts of one shard, in its order."""
        return [str(labels["rollout_id"]) for labels in self._shards[index].rollouts]

    def shard(self, index: int) -> SavedShard:
        """Read and verify one shard. Raises DataError where it does not hold what was saved."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        labels = self._shards[index]
        self._verify(labels.file)
        path = self.directory / labels.file
        try:
            return _shard_of(labels, load_file(path))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{path}: cannot be understood ({type(error).__name__}: {error}); copy the directory again"
            ) from error

    def shards(self) -> list[SavedShard]:
        return [self.shard(index) for index in range(len(self))]

    def _verify(self, name: str) -> None:
        path = self.directory / name
        wanted = self._files.get(name, FileContent(-1, ""))
        if problem := wanted.problem(path, verify=True) if path.is_file() else "missing":
            raise DataError(f"{path}: {problem}; copy the directory again, or have the step saved again")


@dataclass(frozen=True)
class _ShardLabels:
    file: str
    reference: ReferenceKind
    rollouts: Sequence[Mapping[str, Any]]
    scores: tuple[Score, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> _ShardLabels:
        scores = tuple(score_of(score) for score in content["scores"])
        return cls(content["file"], content["reference"], content["rollouts"], scores)


def _record_of(content: Mapping[str, Any]) -> StepRecord:
    return StepRecord(
        step=int(content["step"]),
        kl_coef=float(content["kl_coef"]),
        baselines={prompt: float(value) for prompt, value in content["baselines"].items()},
        trained={int(order): score_of(score) for order, score in content["trained"].items()},
    )


def _shard_of(labels: _ShardLabels, arrays: Arrays) -> SavedShard:
    def cut(name: str, lengths: str) -> list[npt.NDArray[Any]]:
        return np.split(arrays[name], np.cumsum(arrays[lengths])[:-1])

    columns = zip(
        labels.rollouts,
        cut("prompt_ids", "prompt_lengths"),
        cut("response_ids", "response_lengths"),
        cut("rollout_logprobs", "response_lengths"),
        cut("policy_versions", "response_lengths"),
        strict=True,
    )
    rollouts = tuple(
        Rollout(
            prompt_ids=prompt,
            response_ids=response,
            rollout_logprobs=logprobs,
            policy_versions=versions,
            **labels,
        )
        for labels, prompt, response, logprobs, versions in columns
    )
    reference: ReferenceBlock | None = AdaptersOff() if labels.reference == "adapters_off" else None
    if labels.reference == "arrays":
        reference = tuple(cut("reference", "response_lengths"))
    return SavedShard(rollouts, reference, labels.scores)


# -------------------------------------------------------------------------------------------------------------- numbers
def _number_to_json(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def score_to_json(score: Score) -> dict[str, object]:
    return {
        "total": _number_to_json(score.total),
        "parts": {source: _number_to_json(value) for source, value in score.parts.items()},
        "failed": score.failed,
        "step_rewards": [[index, _number_to_json(value)] for index, value in score.step_rewards],
    }


def score_of(content: Mapping[str, Any]) -> Score:
    return Score(
        total=float(content["total"]),
        parts={source: float(value) for source, value in content["parts"].items()},
        failed=str(content["failed"]),
        step_rewards=tuple((int(index), float(value)) for index, value in content["step_rewards"]),
    )
