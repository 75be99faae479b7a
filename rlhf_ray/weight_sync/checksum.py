"""Proof that an engine holds the bytes that the trainer sent.

A **bucket digest** covers a bucket's layout and its bytes: hashed where they are in host memory, summed as integers
where they are on a GPU (a CPU gets the same number). All of them end in one **sync digest**, which the trainer and
every worker must agree on. They find accidents (a cut-off copy, a wrong order, a stale buffer), not an attacker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from rlhf_ray.errors import WeightSyncError
from rlhf_ray.weight_sync.buckets import Bucket

_CHUNK = 1 << 22  # elements; bounds the int64 temporaries to 64 MiB
_CHUNK_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, so multiplying by it modulo 2**64 loses nothing
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class SyncReceipt:
    """What an engine says after a sync: the version it now serves, and one digest for each of its workers."""

    policy_version: int
    digests: tuple[str, ...]

    def require(self, digest: str) -> None:
        """Raise WeightSyncError unless every worker received exactly what has this digest."""
        wrong = [rank for rank, received in enumerate(self.digests) if received != digest]
        if wrong or not self.digests:
            raise WeightSyncError(
                f"policy version {self.policy_version}: workers {wrong} of {len(self.digests)} received other weights"
                f" than were sent (sent {digest}, received {', '.join(self.digests) or 'nothing'}); restart the engine"
            )


def bucket_digest(bucket: Bucket, data: torch.Tensor) -> str:
    """Hash a bucket: ``data`` is its bytes, uint8 [bucket.nbytes] in host memory, padding included."""
    digest = begin_digest(bucket)
    digest.update(data.numpy().data)
    return str(digest.hexdigest())


def begin_digest(bucket: Bucket) -> Any:
    """A hash of the layout, to be updated with the bucket's bytes in order: for those who see them piece by piece."""
    return xxhash.xxh3_128(bucket.layout.encode())


def device_bucket_digest(bucket: Bucket, data: torch.Tensor) -> str:
    """The same for bytes that stay on a GPU: uint8 [bucket.nbytes] on any device. Waits for the device."""
    return xxhash.xxh3_128(f"{bucket.layout}\n{int(tensor_checksum(data))}".encode()).hexdigest()


def sync_digest(digests: Sequence[str], version: int) -> str:
    """Combine the digests of one sync, in the order of sending, with the version they make."""
    return xxhash.xxh3_128("\n".join([f"version {version}", *digests]).encode()).hexdigest()


def tensor_checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor's bit patterns, weighted by position: int64 [], on the tensor's device, without waiting for it.

    Modulo 2**64: chunk = sum_i word_i * (2 i + 1); total = total * odd + chunk. Words are at most 32 bits and there are
    2**22 positions in a chunk, so a change of one word, or a swap of two words in a chunk, moves the sum by less than
    2**64 and by more than nothing: it cannot go unnoticed. Integer addition has no order: every device gives the same.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    width = min(flat.element_size(), 4)
    words = flat.view(_WORDS[width]) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    positions = torch.arange(min(words.numel(), _CHUNK), dtype=torch.int64, device=flat.device) * 2 + 1
    for chunk in torch.split(words, _CHUNK) if words.numel() else ():
        total = total * _CHUNK_FACTOR + (chunk.to(torch.int64) * positions[: chunk.numel()]).sum()
    return total
