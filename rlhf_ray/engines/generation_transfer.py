"""Receiving weights inside an engine's worker processes.

vLLM imports this module in each worker (``worker_extension_cls``) before it builds the model; importing it registers
our receivers with vLLM's own weight-transfer interface and ties the worker's life to its owner's.

A receiver does three things that the engine does not:

1. it takes a digest of what arrived, so that the trainer can tell;
2. it refuses to finish while a layer is incomplete, which the engine would fill with uninitialised memory;
3. on CPUs it repacks a tied output head, which the engine leaves with the weights of the previous version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.multiprocessing.reductions import rebuild_cuda_tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_process_group
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from rlhf_ray.engines.generation_lifetime import end_with_owner, make_no_semaphores
from rlhf_ray.errors import WeightSyncError
from rlhf_ray.weight_sync.buckets import view_slot
from rlhf_ray.weight_sync.checksum import bucket_digest, device_bucket_digest, sync_digest
from rlhf_ray.weight_sync.message import BucketMessage
from rlhf_ray.weight_sync.shared_memory import map_bytes


class TransferExtension:
    """Methods that vLLM mixes into its worker class, for ``collective_rpc``."""

    weight_transfer_engine: Any
    _weight_update_active: bool

    def weight_sync_digest(self, version: int) -> str:
        """Digest of everything that the last sync brought to this worker."""
        return str(self.weight_transfer_engine.digest(version))

    def abandon_weight_update(self) -> None:
        """End a sync whose trainer is gone; the next brings every layer again, those that were complete as well."""
        forget_partial_layers(self.weight_transfer_engine.model)
        self._weight_update_active = False

    def load_checkpoint(self, model_path: str) -> None:
        """Take the weights of a directory in place of a trainer's, inside a sync."""
        self.weight_transfer_engine.load_checkpoint(model_path)


# ------------------------------------------------------------------------------------------------------ after the load
def require_complete_layers(model: torch.nn.Module) -> None:
    """Raise WeightSyncError for layers that got no weights, or only some of them. Call it before finalizing."""
    untouched, partial = [], []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load() or not info.load_numel_total:
            continue
        if info.load_numel == 0 and _owns_weights(model, layer):
            untouched.append(name)
        # An embedding's rows are padded beyond the vocabulary: it never fills up.
        elif 0 < info.load_numel < info.load_numel_total and not isinstance(layer, VocabParallelEmbedding):
            partial.append(f"{name} ({info.load_numel} of {info.load_numel_total} elements)")
    if untouched or partial:
        raise WeightSyncError(
            f"the sync is incomplete: {len(untouched)} layers got no weights ({', '.join(untouched[:3])} ...),"
            f" {len(partial)} got some ({', '.join(partial[:3])} ...); send every parameter of the model"
        )


def forget_partial_layers(model: torch.nn.Module) -> None:
    """Let go what layers have got so far that are not complete: they wait for all of it, as after a start."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.load_numel = 0
            info.loaded_weights.clear()


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Pack a tied output head again from the embedding that it shares; CPU kernels read the packed copy."""
    heads = [layer for layer in model.modules() if isinstance(layer, ParallelLMHead)]
    for head in heads:
        if _is_tied(model, head):
            head.quant_method.process_weights_after_loading(head)


def _owns_weights(model: torch.nn.Module, layer: torch.nn.Module) -> bool:
    """Whether a checkpoint has weights for this layer: parameters, and not those of the embedding."""
    if isinstance(layer, ParallelLMHead) and _is_tied(model, layer):
        return False
    return any(parameter is not None for parameter in layer._parameters.values())


def _is_tied(model: torch.nn.Module, head: ParallelLMHead) -> bool:
    config = getattr(model, "config", None)
    return bool(getattr(config, "tie_word_embeddings", False)) or any(
        layer is not head and isinstance(layer, VocabParallelEmbedding) and layer.weight is head.weight
        for layer in model.modules()
    )


def checkpoint_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the directory's safetensors files, by its name."""
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- the file is no mapping
                yield name, file.get_tensor(name)


# ----------------------------------------------------------------------------------------------------------- receivers
class BucketReceiver(WeightTransferEngine, ABC):
    """Loads verified buckets. How a bucket's bytes come to the worker is each transport's ``fetch``.

    The model may hold views of a bucket until the layers in it are complete: ``fetch`` returns memory that nobody
    writes again.
    """

    update_info_cls = WeightTransferUpdateInfo

    @abstractmethod
    def fetch(self, message: BucketMessage) -> torch.Tensor:
        """Return the bucket's bytes, uint8 [nbytes], on any device."""

    @abstractmethod
    def digest_of(self, message: BucketMessage, data: torch.Tensor) -> str:
        """Return what the trainer calls the digest of these bytes."""

    def start_weight_update(self) -> None:
        self.digests: list[str] = []
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # Not the inherited method, which waits for an accelerator even where there is none.
        self.receive_weights(BucketMessage.from_wire(update_info))

    def receive_weights(self, update_info: BucketMessage) -> None:
        bucket, data = update_info.bucket, self.fetch(update_info)
        found = self.digest_of(update_info, data)
        if found != update_info.digest:
            raise WeightSyncError(f"bucket {bucket.index} arrived with digest {found}, not {update_info.digest}")
        with disable_mtp_completeness_check():
            self.model.load_weights((slot.meta.name, view_slot(data, slot)) for slot in bucket.slots)
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        self.digests.append(found)

    def load_checkpoint(self, model_path: str) -> None:
        """Load every tensor of a checkpoint, file after file."""
        with disable_mtp_completeness_check():
            self.model.load_weights(checkpoint_tensors(Path(model_path)))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        require_complete_layers(self.model)
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            repack_tied_heads(self.model)

    def digest(self, version: int) -> str:
        """Digest of everything received since the start of the last sync."""
        return sync_digest(self.digests, version)

    def shutdown(self) -> None:
        """Nothing to give back."""


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Nothing to agree upon beforehand."""


class SharedMemoryReceiver(BucketReceiver):
    """Maps a file that the trainer wrote to this host's memory. It is never written again and outlives its removal."""

    init_info_cls = NoInitInfo

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def fetch(self, message: BucketMessage) -> torch.Tensor:
        path, bucket = Path(message.address["path"]), message.bucket
        size = path.stat().st_size if path.exists() else 0
        if size != bucket.nbytes:
            raise WeightSyncError(f"bucket {bucket.index} at {path} has {size} bytes, not {bucket.nbytes}")
        return map_bytes(path, bucket.nbytes)

    def digest_of(self, message: BucketMessage, data: torch.Tensor) -> str:
        return bucket_digest(message.bucket, data)


class NcclReceiver(BucketReceiver):
    """Takes part in the broadcast from the trainer's rank 0, which runs at the same time."""

    init_info_cls = NCCLWeightTransferInitInfo
    communicator: Any = None

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        self.communicator = worker_init_process_group(init_info, self.parallel_config)

    def fetch(self, message: BucketMessage) -> torch.Tensor:
        if self.communicator is None:
            raise WeightSyncError("this worker has not met the trainer; call init_weight_sync first")
        data = torch.empty(message.bucket.nbytes, dtype=torch.uint8, device=self.device)
        self.communicator.broadcast(data, src=0)
        return data

    def digest_of(self, message: BucketMessage, data: torch.Tensor) -> str:
        return device_bucket_digest(message.bucket, data)

    def shutdown(self) -> None:
        if self.communicator is not None:
            self.communicator.destroy()
            self.communicator = None


class IpcReceiver(BucketReceiver):
    """Opens the trainer's buffer on the GPU that both share, and copies it: the trainer frees it after the answer."""

    init_info_cls = NoInitInfo

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def fetch(self, message: BucketMessage) -> torch.Tensor:
        uuid = str(torch.cuda.get_device_properties(self.device).uuid)
        handle = message.address["handles"].get(uuid)
        if handle is None:
            raise WeightSyncError(
                f"no trainer rank shares GPU {uuid} with this worker; place both on the same GPUs or use"
                " weight_sync.transport=nccl"
            )
        data = _open_ipc_buffer(handle, message.bucket.nbytes, torch.accelerator.current_device_index()).clone()
        torch.accelerator.synchronize()
        return data

    def digest_of(self, message: BucketMessage, data: torch.Tensor) -> str:
        return device_bucket_digest(message.bucket, data)


def _open_ipc_buffer(handle: dict[str, Any], nbytes: int, device_index: int) -> torch.Tensor:
    """View the exporter's memory; the order of arguments is that of torch's own reduction of a CUDA tensor."""
    key, size_bytes, offset_bytes, _, counter_handle, counter_offset, event_handle, event_sync = handle["storage"]
    return rebuild_cuda_tensor(  # type: ignore[no-any-return, no-untyped-call]
        tensor_cls=torch.Tensor,
        tensor_size=(nbytes,),
        tensor_stride=(1,),
        tensor_offset=handle["offset"],
        storage_cls=torch.UntypedStorage,
        dtype=torch.uint8,
        storage_device=device_index,
        storage_handle=key,
        storage_size_bytes=size_bytes,
        storage_offset_bytes=offset_bytes,
        requires_grad=False,
        ref_counter_handle=counter_handle,
        ref_counter_offset=counter_offset,
        event_handle=event_handle,
        event_sync_required=event_sync,
    )


for _name, _receiver in {"shared_memory": SharedMemoryReceiver, "nccl": NcclReceiver, "ipc": IpcReceiver}.items():
    WeightTransferEngineFactory.register_engine(f"rlhf_{_name}", _receiver)
make_no_semaphores()
end_with_owner()
