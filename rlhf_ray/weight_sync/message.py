"""What a trainer tells an engine about one bucket. The same for every transport; the address is the transport's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.errors import WeightSyncError
from rlhf_ray.weight_sync.buckets import Bucket, Slot, TensorMeta


@dataclass(frozen=True)
class BucketMessage:
    """A bucket's layout, the digest that its bytes must have, and where to find them.

    ``address`` is {"path": ...} for shared memory, {"handles": {gpu uuid: ...}} for CUDA IPC and {} for NCCL.
    """

    bucket: Bucket
    digest: str
    address: Mapping[str, Any]

    def to_wire(self) -> dict[str, Any]:
        """Plain values only: the message crosses processes, and some turn tuples into lists."""
        metas = [slot.meta for slot in self.bucket.slots]
        return {
            "index": self.bucket.index,
            "names": [meta.name for meta in metas],
            "dtypes": [meta.dtype for meta in metas],
            "shapes": [list(meta.shape) for meta in metas],
            "offsets": [slot.offset for slot in self.bucket.slots],
            "nbytes": self.bucket.nbytes,
            "digest": self.digest,
            "address": dict(self.address),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> BucketMessage:
        """Raises WeightSyncError for a message of another form, or with a tensor outside its bucket."""
        try:
            fields = zip(wire["names"], wire["dtypes"], wire["shapes"], wire["offsets"], strict=True)
            slots = tuple(Slot(TensorMeta(name, dtype, tuple(shape)), offset) for name, dtype, shape, offset in fields)
            bucket = Bucket(index=wire["index"], slots=slots, nbytes=wire["nbytes"])
            message = cls(bucket=bucket, digest=wire["digest"], address=wire["address"])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightSyncError(
                f"not a bucket's message: {error!r}; send what BucketMessage.to_wire returns"
            ) from error
        outside = [slot.meta.name for slot in slots if slot.offset < 0 or slot.end > bucket.nbytes]
        if outside:
            raise WeightSyncError(f"bucket {bucket.index} has {bucket.nbytes} bytes and {outside} lie outside of it")
        return message
