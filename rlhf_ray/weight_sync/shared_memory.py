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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.errors import WeightSyncError
from rlhf_ray.weight_sync.buckets import Bucket, Slot, TensorMeta, in_plan
from rlhf_ray.weight_sync.checksum import begin_digest
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


def write_bucket(directory: Path, bucket: Bucket, tensors: Iterable[tuple[str, torch.Tensor]]) -> BucketFile:
    """Write a bucket's tensors, from any device, into a new file and return its address and digest.

    Tensors come in the plan's order; each is cast, hashed and written before the next is asked for. Nothing is left
    behind when this raises: WeightSyncError for tensors that are not the plan's, or when ``directory`` has no room.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"bucket-{bucket.index}-", dir=directory)
    path = Path(name)
    try:
        digest, at = begin_digest(bucket), 0
        with os.fdopen(descriptor, "wb") as file:  # written, not mapped: a mapping costs a fault for every page
            for slot, tensor in in_plan(bucket, tensors):
                for piece in (bytes(slot.offset - at), _host_bytes(tensor, slot)):
                    digest.update(piece)
                    file.write(piece)
                at = slot.end
        return BucketFile(path=path, digest=digest.hexdigest(), bucket=bucket)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise WeightSyncError(
            f"{directory} has no room for a bucket of {bucket.nbytes} bytes ({error.strerror});"
            " enlarge the memory file system or lower weight_sync.bucket_mb"
        ) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def map_bytes(path: Path, nbytes: int) -> torch.Tensor:
    """Map a file as uint8 [nbytes] without reading it; what is written there stays in this process."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_file(str(path), shared=False, size=nbytes, dtype=torch.uint8)


def _host_bytes(tensor: torch.Tensor, slot: Slot) -> memoryview:
    whole = tensor.to("cpu", slot.meta.torch_dtype).contiguous().reshape(-1)
    return whole.view(torch.uint8).numpy().data if whole.numel() else memoryview(b"")


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
