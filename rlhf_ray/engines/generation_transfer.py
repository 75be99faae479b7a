"""Receiving weights inside an engine's worker processes.

vLLM imports this module in each worker (``worker_extension_cls``) before it builds the model; importing it registers
our receivers. A receiver is one of vLLM's own weight-transfer engines plus three things that the engine does not do:

1. it takes a digest of what arrived, so that the trainer can tell;
2. it refuses to finish while a layer is incomplete, which the engine would fill with uninitialised memory;
3. on CPUs it repacks a tied output head, which the engine leaves with the weights of the previous version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from rlhf_ray.errors import WeightSyncError
from rlhf_ray.weight_sync.buckets import Bucket, Slot, TensorMeta
from rlhf_ray.weight_sync.checksum import ChecksumLog, bucket_digest, sync_digest
from rlhf_ray.weight_sync.shared_memory import map_bytes, view_slot


class TransferExtension:
    """Methods that vLLM mixes into its worker class, for ``collective_rpc``."""

    weight_transfer_engine: Any

    def weight_sync_digest(self, version: int) -> str:
        """Digest of everything that the last sync brought to this worker."""
        return str(self.weight_transfer_engine.digest(version))


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


# ----------------------------------------------------------------------------------------------------------- receivers
@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree upon beforehand."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One bucket, as ``BucketFile.update_info`` describes it."""

    path: str
    digest: str
    index: int
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]

    @property
    def bucket(self) -> Bucket:
        fields = zip(self.names, self.dtypes, self.shapes, self.offsets, strict=True)
        slots = tuple(Slot(TensorMeta(name, dtype, tuple(shape)), offset) for name, dtype, shape, offset in fields)
        return Bucket(index=self.index, slots=slots, nbytes=slots[-1].end if slots else 0)


class SharedMemoryReceiver(WeightTransferEngine):
    """Maps buckets that the trainer wrote to the host's memory. For CPUs; the weights are never copied on the way.

    The model may hold views of a bucket until the layers in it are complete. That is safe: a bucket's file is never
    written again, and the mapping outlives its removal.
    """

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        self.digests: list[str] = []
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The inherited method waits for an accelerator, and there is none.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        bucket = update_info.bucket
        data = _map_verified(Path(update_info.path), bucket, update_info.digest)
        with disable_mtp_completeness_check():
            self.model.load_weights((slot.meta.name, view_slot(data, slot)) for slot in bucket.slots)
        self.digests.append(update_info.digest)

    def finish_weight_update(self) -> None:
        require_complete_layers(self.model)
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_heads(self.model)

    def digest(self, version: int) -> str:
        return sync_digest(self.digests, version)

    def shutdown(self) -> None:
        pass


def _map_verified(path: Path, bucket: Bucket, digest: str) -> torch.Tensor:
    size = path.stat().st_size if path.exists() else 0
    if size != bucket.nbytes:
        raise WeightSyncError(
            f"bucket {bucket.index} at {path} has {size} bytes, not {bucket.nbytes}; send a full sync again"
        )
    data = map_bytes(path, bucket.nbytes)
    found = bucket_digest(bucket, data)
    if found != digest:
        raise WeightSyncError(
            f"bucket {bucket.index} at {path} has digest {found}, not {digest}; send a full sync again"
        )
    return data


class _LoggedModel:
    """Stands in for the model while weights arrive: takes each tensor's checksum, then passes it on."""

    def __init__(self, model: torch.nn.Module, log: ChecksumLog) -> None:
        self._model = model
        self._log = log

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        return self._model.load_weights(self._logged(weights))  # type: ignore[operator]

    def _logged(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._log.add(name, tensor)
            yield name, tensor


class _VerifiedReceiver(WeightTransferEngine):
    """Adds the digest and the completeness check to a receiver whose tensors arrive on the GPU."""

    model: Any

    def start_weight_update(self) -> None:
        self.log = ChecksumLog()
        super().start_weight_update()

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _LoggedModel(model, self.log)
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model

    def finish_weight_update(self) -> None:
        require_complete_layers(self.model)
        super().finish_weight_update()

    def digest(self, version: int) -> str:
        return self.log.digest(version)


class NcclReceiver(_VerifiedReceiver, NCCLWeightTransferEngine):
    """vLLM's NCCL broadcast, verified."""


class IpcReceiver(_VerifiedReceiver, IPCWeightTransferEngine):
    """vLLM's CUDA IPC handles, verified."""


RECEIVERS: dict[str, type[WeightTransferEngine]] = {
    "shared_memory": SharedMemoryReceiver,
    "nccl": NcclReceiver,
    "ipc": IpcReceiver,
}
for _name, _receiver in RECEIVERS.items():
    WeightTransferEngineFactory.register_engine(f"rlhf_{_name}", _receiver)
