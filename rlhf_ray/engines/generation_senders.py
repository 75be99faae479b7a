"""Sending weights from the trainer's GPU: NCCL to engines on other GPUs, CUDA IPC to engines on the same one.

A bucket is packed into one buffer on the GPU, announced (``offer``), moved while the engines receive it (``transmit``)
and freed when all have it (``release``): the verbs of rlhf_ray.weight_sync.sender.Sender. Layout, digests and ranks are
those of rlhf_ray.weight_sync; here is only what moves bytes.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from rlhf_ray.errors import ConfigError, WeightSyncError
from rlhf_ray.weight_sync.buckets import Bucket, fill_bucket, plan_buckets
from rlhf_ray.weight_sync.checksum import device_bucket_digest, sync_digest
from rlhf_ray.weight_sync.message import BucketMessage
from rlhf_ray.weight_sync.sender import Export
from rlhf_ray.weight_sync.topology import NcclGroup


class Channel(Protocol):
    """One way to move a buffer, uint8 [bucket.nbytes], from a GPU to the engines."""

    def join(self, group: NcclGroup) -> None:
        """Meet the engines, once, on the source rank."""
        ...

    def address(self, buffer: torch.Tensor | None) -> dict[str, Any]:
        """Where engines find the buffer. Called on every rank; None on ranks that hold none."""
        ...

    def send(self, buffer: torch.Tensor) -> None:
        """Move the buffer while the engines receive it."""
        ...

    def close(self) -> None: ...


class NcclChannel:
    """Broadcast from the trainer's rank 0."""

    def __init__(self) -> None:
        self._communicator: Any = None

    def join(self, group: NcclGroup) -> None:
        """Meet the engines; blocks until every engine's ``init_weight_sync`` runs too."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        self._communicator = trainer_init(group.trainer_info)

    def address(self, buffer: torch.Tensor | None) -> dict[str, Any]:
        return {}

    def send(self, buffer: torch.Tensor) -> None:
        if self._communicator is None:
            raise WeightSyncError("the trainer has not met the engines; call join while they run init_weight_sync")
        self._communicator.broadcast(buffer, src=0)
        torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        if self._communicator is not None:
            self._communicator.destroy()
            self._communicator = None


class IpcChannel:
    """Handles to a buffer on each of the trainer's GPUs: an engine's worker takes the one of the GPU it shares."""

    def join(self, group: NcclGroup) -> None:
        """Nothing to meet."""

    def address(self, buffer: torch.Tensor | None) -> dict[str, Any]:
        mine = {} if buffer is None else {_gpu_uuid(buffer): _ipc_handle(buffer)}
        return {"handles": _gathered(mine)}

    def send(self, buffer: torch.Tensor) -> None:
        """Nothing to do: the engines open the handle."""

    def close(self) -> None:
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


class DeviceSender:
    """Sends an export's tensors by buckets. A rank packs if it ``holds_buffer`` and speaks if it ``is_source``."""

    def __init__(
        self, export: Export, channel: Channel, *, bucket_bytes: int, is_source: bool, holds_buffer: bool, device: str
    ) -> None:
        self._export = export
        self._channel = channel
        self._buckets = plan_buckets(export.metas, bucket_bytes)
        self._is_source = is_source
        self._holds_buffer = holds_buffer
        self._device = device
        self._buffers: dict[int, torch.Tensor] = {}
        self._digests: list[str] = []

    @property
    def num_buckets(self) -> int:
        return len(self._buckets)

    @property
    def num_bytes(self) -> int:
        return sum(bucket.nbytes for bucket in self._buckets)

    def join(self, group: NcclGroup) -> None:
        """Meet the engines, once, on the source rank."""
        if self._is_source:
            self._channel.join(group)

    def begin(self) -> None:
        self._digests = []

    def offer(self, index: int) -> dict[str, Any]:
        """Pack a bucket; return the message for the engines, empty where this rank is not the source."""
        bucket = self._buckets[index]
        buffer = self._pack(bucket)
        if buffer is not None:
            self._buffers[index] = buffer
        address = self._channel.address(buffer)
        if not self._is_source or buffer is None:
            return {}
        digest = device_bucket_digest(bucket, buffer)  # waits for the packing, so that a receiver may read
        self._digests.append(digest)
        return BucketMessage(bucket=bucket, digest=digest, address=address).to_wire()

    def transmit(self, index: int) -> None:
        if self._is_source:
            self._channel.send(self._buffers[index])

    def release(self, index: int) -> None:
        self._buffers.pop(index, None)

    def digest(self, version: int) -> str:
        """Digest of all that was offered since :meth:`begin`."""
        return sync_digest(self._digests, version)

    def close(self) -> None:
        self._buffers.clear()
        self._channel.close()

    def _pack(self, bucket: Bucket) -> torch.Tensor | None:
        tensors = self._export.tensors([slot.meta.name for slot in bucket.slots])
        if not self._holds_buffer:
            for _ in tensors:  # gathering is a collective: take part and keep nothing
                pass
            return None
        buffer = torch.zeros(bucket.nbytes, dtype=torch.uint8, device=self._device)
        fill_bucket(buffer, bucket, tensors)
        return buffer


def make_device_sender(export: Export, *, backend: str, bucket_bytes: int, is_source: bool) -> DeviceSender:
    """Prepare to send over ``backend``, nccl or ipc. Call it on every trainer rank; ``is_source`` on rank 0."""
    if backend not in ("nccl", "ipc"):
        raise ConfigError("weight_sync.transport", backend, "must be nccl or ipc on GPUs", "use auto")
    channel: Channel = NcclChannel() if backend == "nccl" else IpcChannel()
    return DeviceSender(
        export,
        channel,
        bucket_bytes=bucket_bytes,
        is_source=is_source,
        holds_buffer=is_source or backend == "ipc",
        device="cuda",
    )


def _gpu_uuid(tensor: torch.Tensor) -> str:
    return str(torch.cuda.get_device_properties(tensor.device).uuid)


def _ipc_handle(buffer: torch.Tensor) -> dict[str, Any]:
    """A CUDA IPC handle as plain values: a receiver needs no pickle to open it."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, arguments = reduce_tensor(buffer)  # type: ignore[no-untyped-call]
    return {"offset": int(arguments[3]), "storage": list(arguments[7:])}


def _gathered(mine: dict[str, Any]) -> dict[str, Any]:
    """Every trainer rank's handles, by GPU."""
    from torch import distributed

    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return mine
    gathered: list[dict[str, Any]] = [{} for _ in range(distributed.get_world_size())]
    torch.cuda.current_stream().synchronize()  # each rank's packing is done before its handle is known
    distributed.all_gather_object(gathered, mine)
    return {uuid: handle for handles in gathered for uuid, handle in handles.items()}
