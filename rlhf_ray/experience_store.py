"""What the trainer found each token of a saved step worth: for people who look, nothing is computed from it again.

    step_000012/
      experience_00000.safetensors    one rank's rollouts, end to end; orders and lengths tell them apart

A rank writes its own beside the step that it trains on (rollout_store.py). The step is whole without it: runs of
earlier versions have none, and rollouts that were left out of training are in none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_ray.errors import DataError
from rlhf_ray.records import FloatArray

ARRAYS = ("old_logprobs", "ref_logprobs", "advantages", "values")


@dataclass(frozen=True)
class SavedExperience:
    """One rollout as it was trained on. Every array is [R]."""

    old_logprobs: FloatArray  # the trainer's, before the step's first update
    ref_logprobs: FloatArray
    advantages: FloatArray  # whitened where the run whitens them
    values: FloatArray | None  # none without a critic


def write_experience(step: Path, rank: int, experiences: Mapping[int, SavedExperience]) -> None:
    """Write one rank's rollouts, by order, into the directory of the saved step."""
    from safetensors.numpy import save_file

    if not experiences:
        return
    rows = list(experiences.values())
    arrays = {
        "orders": np.array(list(experiences), dtype=np.int64),
        "lengths": np.array([len(row.old_logprobs) for row in rows], dtype=np.int64),
    }
    for name in ARRAYS:
        columns = [vars(row)[name] for row in rows]
        if all(column is not None for column in columns):
            arrays[name] = np.concatenate(columns)
    aside = step / f".experience_{rank:05d}.safetensors"
    save_file(arrays, aside)
    os.replace(aside, step / aside.name[1:])


def read_experience(step: Path, order: int) -> SavedExperience | None:
    """What rollout ``order`` was worth; None where nobody wrote it. Raises DataError for a file that is damaged."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(step.glob("experience_*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                places = np.flatnonzero(file.get_tensor("orders") == order)
                if not len(places):
                    continue
                ends = np.cumsum(file.get_tensor("lengths"))
                start, end = int(ends[places[0] - 1]) if places[0] else 0, int(ends[places[0]])
                kept = {name: file.get_tensor(name)[start:end] for name in ARRAYS if name in file.keys()}  # noqa: SIM118
                return SavedExperience(**{"values": None, **kept})
        except (SafetensorError, OSError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"{path}: cannot be understood ({type(error).__name__}: {error})") from error
    return None
