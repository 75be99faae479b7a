"""What a rank was doing when a step's numbers went bad: kept on disk so that it can be done again exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rlhf_ray.data.collate import TokenBatch
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.stages.ppo_experience import Experience
from rlhf_ray.stages.ppo_plan import PpoWork

Part: TypeAlias = Literal["experience", "policy", "critic"]
CHECKED = {
    "ref_logprobs": "reference log-probability",
    "old_logprobs": "old log-probability",
    "values": "value",
    "rewards": "reward",
    "token_weights": "weight",
    "advantages": "advantage",
    "returns": "return",
}


@dataclass(frozen=True)
class Attempt:
    """One part of a step: making the experience of all of it, or one model's update on one minibatch."""

    part: Part = "experience"
    epoch: int = 0
    minibatch: int = 0
    first: bool = False  # whether no update of the step came before
    experiences: tuple[Experience, ...] = ()  # of the minibatch; none while experience is made

    def __str__(self) -> str:
        if self.part == "experience":
            return "the step's experience, before its first update"
        return f"the {self.part}'s update in epoch {self.epoch + 1}, minibatch {self.minibatch}"


@dataclass(frozen=True)
class Findings:
    """What one rank found when it did the part again. ``rows`` names, by order, what is not finite in a rollout."""

    error: str  # empty where nothing failed
    rows: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    largest: Mapping[str, tuple[float, int]] = field(default_factory=dict)  # finite |value| and its rollout, by what
    metrics: MetricSums = field(default_factory=MetricSums)
    gradients: tuple[str, ...] = ()  # parameters whose gradient is not finite, in the order of the model


def write_attempt(directory: Path, rank: int, attempt: Attempt) -> None:
    """Write one rank's part of a failure: its place as JSON, the experiences as safetensors."""
    from safetensors.torch import save_file

    labels = {
        "part": attempt.part,
        "epoch": attempt.epoch,
        "minibatch": attempt.minibatch,
        "first": attempt.first,
        "orders": [experience.orders for experience in attempt.experiences],
    }
    tensors = {
        f"{index}.{name}": tensor.detach().cpu().clone().contiguous()
        for index, experience in enumerate(attempt.experiences)
        for name, tensor in _tensors_of(experience)
    }
    save_file(tensors, _path(directory, rank, "safetensors"))
    _path(directory, rank, "json").write_text(json.dumps(labels))


def read_attempt(directory: Path, rank: int, device: torch.device) -> Attempt:
    """Read what :func:`write_attempt` wrote. Raises DataError where it is not there or cannot be understood."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _path(directory, rank, "json")
    try:
        labels = json.loads(path.read_text())
        tensors = {name: t.to(device) for name, t in load_file(_path(directory, rank, "safetensors")).items()}
        orders = labels.pop("orders")
        made = tuple(_experience_of(tuple(rows), tensors, index) for index, rows in enumerate(orders))
        return Attempt(**labels, experiences=made)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"{path}: does not tell what rank {rank} was doing ({type(error).__name__}: {error}); examine it with as "
            "many ranks as the run had, and copy the directory again"
        ) from error


def not_finite(experiences: Sequence[Experience], work: PpoWork) -> dict[int, tuple[str, ...]]:
    """What is not finite in each rollout, by order; rollouts of which all is finite are left out."""
    found = {}
    for experience in experiences:
        for row, order in enumerate(experience.orders):
            mask = experience.batch.mask[row]
            names = [] if torch.isfinite(torch.tensor(work.scores[order])) else ["score"]
            names += [label for name, label in CHECKED.items() if not _finite(getattr(experience, name)[row], mask)]
            if names:
                found[order] = tuple(names)
    return found


def largest(experiences: Sequence[Experience], work: PpoWork) -> dict[str, tuple[float, int]]:
    """The largest finite magnitude of everything that is checked, and the order of its rollout."""
    found: dict[str, tuple[float, int]] = {}
    for experience in experiences:
        for row, order in enumerate(experience.orders):
            mask = experience.batch.mask[row]
            values = {label: getattr(experience, name)[row][mask] for name, label in CHECKED.items()}
            values["score"] = torch.tensor([work.scores[order]], dtype=torch.float64)
            for label, tensor in values.items():
                finite = tensor[torch.isfinite(tensor)].abs()
                top = float(finite.max()) if len(finite) else 0.0
                if top > found.get(label, (-1.0, 0))[0]:
                    found[label] = top, order
    return found


def _finite(values: Tensor, mask: Tensor) -> bool:
    return bool(torch.isfinite(values[mask]).all())


def _path(directory: Path, rank: int, suffix: str) -> Path:
    return directory / f"failure_rank_{rank:05d}.{suffix}"


def _tensors_of(experience: Experience) -> Iterator[tuple[str, Tensor]]:
    for part in fields(TokenBatch):
        yield f"batch.{part.name}", getattr(experience.batch, part.name)
    for part in fields(Experience):
        value = getattr(experience, part.name)
        if isinstance(value, Tensor):  # whole distributions are not always there
            yield part.name, value


def _experience_of(orders: tuple[int, ...], tensors: Mapping[str, Tensor], index: int) -> Experience:
    batch = TokenBatch(**{part.name: tensors[f"{index}.batch.{part.name}"] for part in fields(TokenBatch)})
    rest = [part.name for part in fields(Experience) if part.name not in ("orders", "batch")]
    return Experience(orders=orders, batch=batch, **{name: tensors.get(f"{index}.{name}") for name in rest})  # type: ignore[arg-type]
