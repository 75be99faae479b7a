"""The trainer's side of a sync: buckets are offered, transmitted and released in their order, on every rank.

A bucket may be offered while the one before is not released yet: two are in memory then. Under ZeRO-3 gathering a
bucket is a collective, so every rank walks every bucket; rank 0 alone writes or sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rlhf_ray.weight_sync.buckets import TensorMeta, plan_buckets
from rlhf_ray.weight_sync.checksum import sync_digest
from rlhf_ray.weight_sync.shared_memory import DEFAULT_ROOT, BucketFile, bucket_directory, write_bucket
from rlhf_ray.weight_sync.topology import NcclGroup


class Export(Protocol):
    """Where whole tensors come from (engines/export.py)."""

    @property
    def metas(self) -> tuple[TensorMeta, ...]: ...

    def tensors(self, names: Sequence[str]) -> Iterable[tuple[str, Tensor]]:
        """Yield (name, weight) in the order given; a collective under ZeRO-3."""
        ...


class Sender(Protocol):
    """One way to send buckets."""

    @property
    def num_buckets(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...

    def join(self, group: NcclGroup) -> None:
        """Meet the engines, once a run."""
        ...

    def begin(self) -> None: ...

    def offer(self, index: int) -> dict[str, Any]:
        """Prepare a bucket and return what the engines must know to receive it (empty on ranks above 0)."""
        ...

    def transmit(self, index: int) -> None:
        """Send the offered bucket while the engines receive it."""
        ...

    def release(self, index: int) -> None:
        """Every engine has the bucket: give its memory back."""
        ...

    def digest(self, version: int) -> str:
        """Digest of all that was sent since :meth:`begin`."""
        ...

    def close(self) -> None: ...


class SharedMemorySender:
    """Writes each bucket to a file in memory, which the engines of this host map."""

    def __init__(self, export: Export, *, bucket_bytes: int, is_source: bool, root: Path = DEFAULT_ROOT) -> None:
        self._export = export
        self._buckets = plan_buckets(export.metas, bucket_bytes)
        self._is_source = is_source
        self._cleanup = ExitStack()
        self._directory = self._cleanup.enter_context(bucket_directory(root)) if is_source else root
        self._files: dict[int, BucketFile] = {}
        self._digests: list[str] = []

    @property
    def num_buckets(self) -> int:
        return len(self._buckets)

    @property
    def num_bytes(self) -> int:
        return sum(bucket.nbytes for bucket in self._buckets)

    def join(self, group: NcclGroup) -> None:
        """Nothing to meet: the engines read files."""

    def begin(self) -> None:
        self._digests = []

    def offer(self, index: int) -> dict[str, Any]:
        bucket = self._buckets[index]
        tensors = self._export.tensors([slot.meta.name for slot in bucket.slots])
        if not self._is_source:
            for _ in tensors:  # gathering is a collective: take part and keep nothing
                pass
            return {}
        self._files[index] = write_bucket(self._directory, bucket, tensors)
        self._digests.append(self._files[index].digest)
        return self._files[index].update_info

    def transmit(self, index: int) -> None:
        """Nothing to do: the engines read the file."""

    def release(self, index: int) -> None:
        if self._is_source:
            self._files.pop(index).remove()

    def digest(self, version: int) -> str:
        return sync_digest(self._digests, version)

    def close(self) -> None:
        self._cleanup.close()
