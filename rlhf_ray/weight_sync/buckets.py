"""Which tensors travel together: the plan that sender and receivers share.

A bucket is a flat run of bytes. Each tensor starts at a multiple of 64 bytes, so that a receiver may view it in place
whatever its dtype is. The plan depends on names, dtypes and shapes only; every rank that sees the same model makes the
same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rlhf_ray.errors import ConfigError, WeightSyncError

ALIGNMENT = 64
DEFAULT_BUCKET_BYTES = 64 * 2**20

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class TensorMeta:
    """What a receiver must know of one tensor: its name in the checkpoint, its dtype on the wire, its full shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise WeightSyncError(f"tensor {self.name!r} has dtype {self.dtype!r}; can send {', '.join(DTYPES)}")

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> TensorMeta:
        """Describe a tensor; reads nothing but its dtype and shape."""
        return cls(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize


@dataclass(frozen=True)
class Slot:
    """A tensor's place in its bucket."""

    meta: TensorMeta
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.meta.nbytes


@dataclass(frozen=True)
class Bucket:
    """Tensors that travel together. ``nbytes`` is where the last one ends."""

    index: int
    slots: tuple[Slot, ...]
    nbytes: int

    @property
    def layout(self) -> str:
        """One line for each tensor; it is part of the bucket's digest, so that bytes under a wrong name are noticed."""
        return "\n".join(f"{slot.meta.name} {slot.meta.dtype} {slot.meta.shape} {slot.offset}" for slot in self.slots)


def plan_buckets(metas: Sequence[TensorMeta], max_bytes: int = DEFAULT_BUCKET_BYTES) -> tuple[Bucket, ...]:
    """Cut a model into buckets of at most ``max_bytes``, in the order given.

    A tensor larger than ``max_bytes`` gets a bucket of its own. The order is kept because a receiver repacks a fused
    layer once all of its parts are there: parts that arrive together are not held for long.

    Raises ConfigError for a limit below 1 and WeightSyncError for a name that occurs twice.
    """
    if max_bytes < 1:
        raise ConfigError("max_bytes", max_bytes, "must be at least 1", f"try {DEFAULT_BUCKET_BYTES}")
    _require_distinct_names(metas)
    buckets: list[Bucket] = []
    slots: list[Slot] = []
    for meta in metas:
        offset = _align(slots[-1].end) if slots else 0
        if slots and offset + meta.nbytes > max_bytes:
            buckets.append(_bucket(len(buckets), slots))
            slots, offset = [], 0
        slots.append(Slot(meta, offset))
    if slots:
        buckets.append(_bucket(len(buckets), slots))
    return tuple(buckets)


def view_slot(data: torch.Tensor, slot: Slot) -> torch.Tensor:
    """View a tensor in its bucket's bytes (uint8 [bucket.nbytes], any device), without a copy."""
    return data[slot.offset : slot.end].view(slot.meta.torch_dtype).view(slot.meta.shape)


def fill_bucket(data: torch.Tensor, bucket: Bucket, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy a bucket's tensors into its bytes, casting to the dtype that the plan names. See :func:`in_plan`."""
    for slot, tensor in in_plan(bucket, tensors):
        view_slot(data, slot).copy_(tensor)


def in_plan(bucket: Bucket, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[Slot, torch.Tensor]]:
    """Yield each tensor with its place, one pass in the plan's order; it is valid until the next is asked for.

    ``tensors`` are taken to their end, for the last one may be a parameter that is gathered until then. Raises
    WeightSyncError for a tensor that is missing, out of order, too many or of another shape.
    """
    named = iter(tensors)
    for slot in bucket.slots:
        name, tensor = next(named, ("nothing", None))
        if tensor is None or name != slot.meta.name:
            raise WeightSyncError(
                f"tensor {slot.meta.name!r} is next in the plan and {name!r} was given; keep its order"
            )
        if tuple(tensor.shape) != slot.meta.shape:
            raise WeightSyncError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} and the plan says {slot.meta.shape};"
                " gather a sharded parameter before sending it"
            )
        yield slot, tensor.detach()
    for name, _ in named:
        raise WeightSyncError(f"tensor {name!r} was given after the last one of the plan; give what the bucket holds")


def _require_distinct_names(metas: Sequence[TensorMeta]) -> None:
    seen: set[str] = set()
    for meta in metas:
        if meta.name in seen:
            raise WeightSyncError(f"tensor {meta.name!r} is listed twice; names must be distinct")
        seen.add(meta.name)


def _bucket(index: int, slots: Sequence[Slot]) -> Bucket:
    return Bucket(index=index, slots=tuple(slots), nbytes=slots[-1].end)


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
