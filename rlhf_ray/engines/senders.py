"""Which sender serves a weight-transfer back end."""

from __future__ import annotations

from rlhf_ray.engines.training import TrainingEngine
from rlhf_ray.weight_sync.sender import Sender, SharedMemorySender


def make_sender(engine: TrainingEngine, *, backend: str, dtype: str, bucket_bytes: int) -> Sender:
    """Prepare to send the engine's policy in ``dtype`` over ``backend`` (shared_memory, nccl or ipc)."""
    export = engine.export(dtype)
    is_source = engine.info.rank == 0
    if backend == "shared_memory":
        return SharedMemorySender(export, bucket_bytes=bucket_bytes, is_source=is_source)
    from rlhf_ray.engines.generation_senders import make_device_sender

    return make_device_sender(export, backend=backend, bucket_bytes=bucket_bytes, is_source=is_source)
