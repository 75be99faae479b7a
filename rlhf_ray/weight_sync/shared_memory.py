"""Weights through files in memory: the trainer writes a bucket once, every worker on the host maps it without a copy.

A bucket's file is written once and never again, so a worker may go on reading its mapping after the file is removed.
The directory belongs to one trainer process: it is removed when the process leaves the ``with`` block, and what a
killed process has left behind is removed by the next one on the host.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.errors import WeightSyncError
from rlhf_ray.weight_sync.buckets import Bucket, TensorMeta, fill_bucket
from rlhf_ray.weight_sync.checksum import bucket_digest
from rlhf_ray.weight_sync.message import BucketMessage

DEFAULT_ROOT = Path("/dev/shm")
_PREFIX = "rlhf-weights-"


@dataclass(frozen=True)
class BucketFile:
    """A bucket on tmpfs. ``remove`` it once every engine has answered."""

    path: Path
    digest: str
    bucket: Bucket

    @property
    def metas(self) -> tuple[TensorMeta, ...]:
        return tuple(slot.meta for slot in self.bucket.slots)

    @property
    def update_info(self) -> dict[str, Any]:
        """What an engine's ``receive_weights`` takes."""
        return BucketMessage(bucket=self.bucket, digest=self.digest, address={"path": str(self.path)}).to_wire()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


@contextmanager
def bucket_directory(root: Path = DEFAULT_ROOT) -> Iterator[Path]:
    """Yield a directory of this process's own under ``root``; it is gone afterwards, whatever happens inside.

    The directory is locked while its owner lives. Directories under ``root`` that nobody locks are removed first.
    """
    _remove_abandoned(root)
    directory, descriptor = _locked_directory(root)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def write_bucket(directory: Path, bucket: Bucket, tensors: Mapping[str, torch.Tensor]) -> BucketFile:
    """Write a bucket's tensors, from any device, into a new file and return its address and digest.

    A tensor is cast to the dtype that the plan names. Nothing is left behind when this raises: WeightSyncError for a
    tensor that is missing or has another shape, or when ``directory`` has no room.
    """
    missing = [slot.meta.name for slot in bucket.slots if slot.meta.name not in tensors]
    if missing:
        raise WeightSyncError(f"tensors {missing} are in the plan and were not given; pass every tensor of the bucket")
    descriptor, name = tempfile.mkstemp(prefix=f"bucket-{bucket.index}-", dir=directory)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb"):
            _reserve(descriptor, directory, bucket.nbytes)
        data = map_bytes(path, bucket.nbytes, shared=True)
        fill_bucket(data, bucket, ((slot.meta.name, tensors[slot.meta.name]) for slot in bucket.slots))
        return BucketFile(path=path, digest=bucket_digest(bucket, data), bucket=bucket)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def map_bytes(path: Path, nbytes: int, *, shared: bool = False) -> torch.Tensor:
    """Map a file as uint8 [nbytes] without reading it. ``shared`` writes go to the file; else they stay private."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_file(str(path), shared=shared, size=nbytes, dtype=torch.uint8)


def _reserve(descriptor: int, directory: Path, nbytes: int) -> None:
    """Claim the space now: a write into a mapping that tmpfs cannot back would kill the process."""
    try:
        if nbytes:
            os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        raise WeightSyncError(
            f"{directory} has no room for a bucket of {nbytes} bytes ({error.strerror});"
            " enlarge the memory file system or lower weight_sync.bucket_mb"
        ) from error


def _locked_directory(root: Path) -> tuple[Path, int]:
    """Make a directory and lock it; once more if another process took it for abandoned before the lock."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if directory.exists():
            return directory, descriptor
        os.close(descriptor)


def _remove_abandoned(root: Path) -> None:
    for directory in root.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:
            continue  # somebody else's, or gone by now
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            continue  # its owner is alive
        finally:
            os.close(descriptor)
